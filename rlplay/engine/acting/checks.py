"""Checks of an actor at the call of a ``rollout``: whether it can be copied, and whether its answers are valid.

Each error message says what is wrong and what to do about it.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import nested
from ...nested import Nested
from ..core import BaseActorModule, State
from ..envs.spaces import Field, along
from ..memory.layout import numpy_dtype_of
from .actor_spec import first_of, note_obs
from .weights import check_can_be_written, check_not_sharded

__all__ = ["check_actor", "check_answer", "clamped_leaves", "first_answer", "method_of"]


def check_actor(actor: Any) -> None:
    """Check that an actor is of a kind that can be copied.

    Raises
    ------
    TypeError
        If the actor is no :class:`BaseActorModule`, has sharded parameters (FSDP), is or contains a wrapper for
        compiling or data parallelism, a TorchScript module, or a module whose ``forward``, ``reset`` or ``step`` is set
        on the instance; or if a ``generator`` is no :class:`torch.Generator`.
    ValueError
        If parameters or buffers are not initialised yet, are on the meta device, or are sparse, quantized or expanded.
    """
    parts = list(actor.named_modules()) if isinstance(actor, nn.Module) else []
    if parts:
        check_not_sharded(actor)
    for name, part in parts:
        _check_module(name, part)
    if not isinstance(actor, BaseActorModule):
        got = f"the class {actor.__name__}" if isinstance(actor, type) else type(actor).__name__
        remedy = f": write `{actor.__name__}()`" if isinstance(actor, type) and issubclass(actor, nn.Module) else ""
        raise TypeError(f"`actor` must be a rlplay.engine.BaseActorModule, got {got}{remedy}.")
    for name, part in parts:
        generator = part._modules.get("generator", vars(part).get("generator"))
        if isinstance(part, BaseActorModule) and not isinstance(generator, torch.Generator | None):
            raise TypeError(
                f"the actor's `{f'{name}.' * bool(name)}generator` is a {type(generator).__name__}, but that is the "
                "name of the random generator that the engine gives to its copy: give it another name."
            )
    for name, weight in [*actor.named_parameters(), *actor.named_buffers()]:
        check_can_be_written(name, weight)


def _check_module(name: str, part: nn.Module) -> None:
    """Check that the copy of a module would compute with its own weights, instead of those of the original."""
    if isinstance(part, torch.jit.ScriptModule):
        raise TypeError(
            f"the actor{f' has in `{name}`' if name else ' is'} a TorchScript module (`torch.jit.script` or "
            "`torch.jit.trace`), whose weights lie outside of Python, where snapshots of the learner's weights cannot "
            "be written: leave the Python module in its place. `rollout(..., compile=True)` compiles the actor's step."
        )
    inner = next((attribute for attribute in ("_orig_mod", "module") if _wraps(part, attribute)), None)
    if inner is not None:
        raise TypeError(
            f"the actor is or contains a {type(part).__name__}, whose copy would go on using the original's weights: "
            f"pass the module inside (`.{inner}`); the learner may use the wrapper."
        )
    own = sorted({"forward", "reset", "step"} & set(vars(part)))
    if own:
        raise TypeError(
            f"the actor's `{own[0]}` is set on the instance, as by `actor.{own[0]} = torch.compile(...)`, so that its "
            "copy would go on using the original's weights: leave the actor as it is, and keep what the learner "
            "compiles outside of it."
        )


def _wraps(module: nn.Module, name: str) -> bool:
    """Return whether a module is torch's wrapper for compiling (``_orig_mod``) or for data parallelism (``module``)."""
    kind = type(module).__name__
    wrapper = kind == "OptimizedModule" if name == "_orig_mod" else "DataParallel" in kind
    return wrapper and isinstance(getattr(module, name, None), nn.Module)


def first_answer(actor: BaseActorModule, state: State) -> Any:
    """Return what a virtual step without a recurrent state answers: the first call of an actor.

    Raises
    ------
    TypeError
        If the actor's ``forward`` does not take the arguments that ``step`` calls it with.
    """
    try:
        return actor.step(*state, hx=None, virtual=True)
    except Exception as error:
        misfit = _misfit(actor) if isinstance(error, TypeError) else ""
        if not misfit or _has_run(error, type(actor).forward):
            note_obs(error, state.obs)
            raise
        raise TypeError(misfit) from error


def method_of(actor: BaseActorModule) -> str:
    """Return the name of the method that the user has written: ``forward``, or an overridden ``step``."""
    return "forward" if type(actor).step is BaseActorModule.step else "step"


def _misfit(actor: BaseActorModule) -> str:
    """Return why ``forward`` of an actor cannot be called by the default ``step``; an empty string if it can be."""
    kind = type(actor)
    if kind.step is not BaseActorModule.step:
        return ""
    signature = inspect.signature(kind.forward, follow_wrapped=False)
    keywords = ("act", "rew", "fin", "stepno", "hx", "virtual")
    taken = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    refused = [f"`{k}`" for k in keywords if k not in {p.name for p in taken}]
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        refused = []
    try:
        signature.bind(actor, None, **dict.fromkeys(keywords))
    except TypeError as error:
        code = inspect.unwrap(kind.forward).__code__
        what, remedy = f"but: {error}", "give it those parameters"
        if refused:
            what = f"but does not take {', '.join(refused)}"
            remedy = "end its parameters with `**ignored`, or list them by name"
        return (
            f"{kind.__qualname__}.forward{signature} (line {code.co_firstlineno} of {code.co_filename}) is called as "
            f"`forward(obs, {', '.join(f'{k}=...' for k in keywords)})`, {what}: {remedy}."
        )
    return ""


def _has_run(error: BaseException, function: Any) -> bool:
    """Return whether an exception was raised inside a function, rather than by calling it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))


def check_answer(answer: Any, act: Nested, width: int, method: str) -> tuple[Nested, Nested, Nested]:
    """Check the form of what the actor's ``step`` returned, and return it as a triple.

    Parameters
    ----------
    answer : object
        What ``step`` returned.
    act : nested Field
        The fields of the action space.
    width : int
        The number of environments.
    method : str
        The name of the method in messages.

    Returns
    -------
    act, hx, info : nested tensors

    Raises
    ------
    TypeError, ValueError
        If ``answer`` is no triple, if the action has another structure, shape or kind than the action space, or if a
        dimension of time or batch is missing.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise TypeError(f"the actor's `{method}` must return (act, hx, info), got {_no_triple(answer)}")
    acted, hx, info = answer
    _check_action(act, acted, width)
    _check_batch("info", info, (1, width), "(1, n_envs, ...)")
    _check_batch("hx", hx, (None, width), "(n_layers, n_envs, ...)")
    return acted, hx, info


def _check_action(described: Nested, acted: Nested, width: int) -> None:
    """Check that the action has the structure, shapes and kinds of the action space."""
    try:
        found, spec = nested.flatten(along(described, acted, "act"))
    except ValueError as error:
        raise ValueError(f"the actor's action is not put together as the action space: {error}") from None
    parts = spec.flatten_up_to(acted)
    field: Field
    for field, part, name in zip(found, parts, nested.names(described, "act"), strict=True):
        if not isinstance(part, Tensor):
            raise TypeError(f"the actor's {name} must be a tensor, got {_shortened(part)}.")
        expected = (1, width, *field.shape)
        if tuple(part.shape) != expected:
            raise ValueError(
                f"the actor's {name}: expected shape (1, n_envs, ...) = {expected}, got {tuple(part.shape)}"
                f"{_shape_remedy(tuple(part.shape), expected)}."
            )
        dtype = numpy_dtype_of(part.dtype)
        accepted, why = field.accepts(dtype), "which cannot be cast safely"
        if accepted and _is_wider(dtype, field) and (not field.integral or dtype.kind == "u"):
            accepted, why = False, "whose numbers may wrap around in the dtype of the space"
        if not accepted:
            wanted = "long()" if field.integral else f"to(torch.{field.dtype})"
            raise ValueError(
                f"the actor's {name}: expected {field}, got {part.dtype}, {why}: return e.g. `{name}.{wanted}`."
            )


def clamped_leaves(described: Sequence[Field], acted: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """Find the leaves of an action that are to be clamped, see :attr:`.actor_spec.ActorSpec.clamped`."""
    pairs = enumerate(zip(described, acted, strict=False))  # infos may come behind the actions
    wider = [(k, np.iinfo(field.dtype)) for k, (field, part) in pairs if _is_wider(numpy_dtype_of(part.dtype), field)]
    return [(k, int(limits.min), int(limits.max)) for k, limits in wider]


def _is_wider(dtype: np.dtype[Any], field: Field) -> bool:
    """Return whether a cast of integers to the dtype of a field may turn a number outside of its space into one inside.

    Integers of one byte cannot in a MultiBinary: they become negative at most, and its space has no negative numbers.
    """
    if dtype.kind not in "iu" or field.dtype.kind not in "iu":
        return False
    return dtype.itemsize > field.dtype.itemsize if field.integral else not np.can_cast(dtype, field.dtype, "safe")


def _check_batch(what: str, tree: Nested, leading: tuple[int | None, int], expected: str) -> None:
    """Check that every leaf is a tensor with these leading dimensions (``None`` is any)."""
    for leaf, name in zip(nested.leaves(tree), nested.names(tree, what), strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"the actor's {name} must be a tensor, got {_shortened(leaf)}.")
        if leaf.ndim < 2 or any(n not in (None, m) for n, m in zip(leading, leaf.shape, strict=False)):
            raise ValueError(
                f"the actor's {name}: expected shape {expected}, here with n_envs = {leading[1]}, "
                f"got {tuple(leaf.shape)}{_shape_remedy(tuple(leaf.shape), (1, leading[1])) if leading[0] else ''}."
            )


def _shape_remedy(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return what to do about a shape, after a colon; empty if it is no common slip.

    Parameters
    ----------
    got : tuple of int
        The shape of an action or of an info.
    expected : tuple of int
        The shape of an action; of a Discrete one, or of an info, its first two dimensions alone.
    """
    fits = got[:2] == expected[:2]
    swapped = got[:2] == expected[1::-1] and not fits
    if got == expected[1:] or (len(expected) == 2 and got[:1] == expected[1:] and not swapped and not fits):
        return ": the first dimension, n_seq, was dropped; `.unsqueeze(0)` brings it back"
    if swapped and (len(expected) == 2 or got[2:] == expected[2:]):
        return ": the first two dimensions are swapped; `.transpose(0, 1)` brings them into order"
    if got == (*expected, 1):
        return ": remove the last dimension with `.squeeze(-1)`"
    if len(expected) == 2 and got[:-1] == expected:
        return ": are these logits? Return the action that is drawn from them"
    return ": add the last dimension with `.unsqueeze(-1)`" if (*got, 1) == expected else ""


def _no_triple(answer: Any) -> str:
    """Describe what an actor has returned in the place of three values, and say what to do about it."""
    if answer is None:
        return "None: is a `return` missing?"
    got, remedy = _shortened(answer), "end it with `return act, hx, info`."
    if isinstance(answer, tuple | list):
        n = len(answer)
        inside = f" ({first_of(list(map(_kind_of, answer)))})" if n else ""
        got = f"{n} value{'s' * (n != 1)}{inside}"
        if n == 2:
            remedy = "an actor without memory returns `hx` unchanged."
    return f"{got}: {remedy}"


def _kind_of(value: Any) -> str:
    """Describe a value by its type and, if it is an array or a tensor, its shape."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _shortened(value: Any) -> str:
    """Describe a value by its type and its shape, or the beginning of its ``repr``."""
    if value is None or isinstance(getattr(value, "shape", None), tuple):
        return "None" if value is None else _kind_of(value)
    return f"{type(value).__name__} {value!r}"[:200]
