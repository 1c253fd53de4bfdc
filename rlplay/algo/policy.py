"""Reads a policy's distribution from an actor's info: log-probabilities, densities and entropies for any action space.

The info of a policy is a mapping. Its entries depend on the action space; ``lead`` are the leading dimensions, such as
``(T, B)``::

    Discrete            "logits": float (*lead, n)                            unnormalised log-probabilities
    MultiDiscrete       "logits": tuple of float (*lead, n_i)                 the same, one for each component
    MultiBinary         "logits": float, the shape of act                     log-odds of independent bits
    Box                 "mean", "log_std": float, the shape of act            independent normal distributions
    Box, squashed       "mean", "log_std", "pre_tanh": float, shape of act    act = tanh(pre_tanh), pre_tanh normal
    Dict                a mapping from the keys of the space to infos of these kinds
    Tuple               a tuple of infos of these kinds

These entries stand beside the other entries of the actor's info, such as ``"value"``, or all together in an entry
``"policy"``. A Tuple, and a Dict whose keys are names of other entries, need the entry ``"policy"``.

A logit of ``-inf`` forbids its action (in a MultiBinary space: the value 1; ``inf`` forbids the value 0). A forbidden
action has probability zero, adds nothing to the entropy, and its logit gets gradient zero.

The action of a squashed policy may be shifted and scaled to the bounds of its space after ``tanh``. Its density is that
of ``tanh(pre_tanh)``, in (-1, 1): the scale would add a constant. The density is computed from the ``pre_tanh`` that
the behaviour policy recorded in ``fragment.actor``, since ``tanh`` in float32 cannot be inverted near its bounds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from .. import nested
from ..dtypes import at_least_float32
from ..engine import Fragment
from ..nested import Nested
from .distributions import Bits, Categorical, Gaussian, Joint, Policy, PreTanh, SquashedGaussian
from .masked import like
from .transitions import taken

__all__ = ["carried_out", "check_rows", "drawn_log_prob", "entry", "mean_action", "policy"]

_Rows: TypeAlias = Callable[[Tensor], Tensor]
"""Selects and masks the rows of an entry, and converts them to the dtype of the computation."""


def carried_out(fragment: Fragment) -> Nested:
    """Return the actions of a fragment in the form in which policies take them.

    Parameters
    ----------
    fragment : Fragment
        Its actor info has ``"pre_tanh"`` where the policy is squashed.

    Returns
    -------
    nested, ``(T, B, ...)``
        ``a_t``, views of the fragment. In the place of each action of a squashed policy there is a
        :class:`~rlplay.algo.distributions.PreTanh`.
    """
    return _with_pre_tanh(_policy_info(fragment.actor), taken(fragment), len(fragment.env.valid))


def policy(info: Nested, act: Nested, valid: Tensor) -> Policy:
    """Make the distribution of a policy from an actor's info.

    Parameters
    ----------
    info : nested float tensors, ``(n_seq, B, ...)``
        With the entries that the module's docstring lists. Rows after the first ``T``, such as the look-ahead row, are
        ignored.
    act : nested tensors, ``(T, B, ...)``
        The actions, as :func:`carried_out` returns them. Their structure, dtypes and shapes tell the kinds of spaces.
    valid : bool tensor, ``(T, B)``
        Rows where it is False are replaced by zeros, so that neither gradients nor NaN pass through them.

    Returns
    -------
    Policy
        In the dtype of the info, but at least float32; with gradients to the info.

    Raises
    ------
    TypeError
        The info is no mapping, or there is a kind of action that the module's docstring does not list.
    ValueError
        The info lacks an entry, or an entry has another shape.
    """

    def rows(x: Tensor) -> Tensor:
        x = x[: len(valid)]
        return at_least_float32(x.masked_fill(~like(valid, x), 0))

    return _of(_policy_info(info), act, valid.shape, rows, "")


def drawn_log_prob(info: Nested, act: Nested) -> Tensor:
    """Compute the log-probability of the actions that an actor has just drawn, with gradients to action and info.

    Parameters
    ----------
    info : nested float tensors, ``(n_seq, B, ...)``
        The info of a policy; where it is squashed, ``"pre_tanh"`` is that of the actions.
    act : nested tensors, ``(n_seq, B, ...)``
        What the actor returned beside the info.

    Returns
    -------
    float tensor, ``(n_seq, B)``

    Raises
    ------
    TypeError, ValueError
        As for :func:`policy`.
    """
    info = _policy_info(info)
    drawn = _with_pre_tanh(info, act, None)
    lead = nested.leaves(drawn)[0].shape[:2]
    return _of(info, drawn, lead, at_least_float32, "").log_prob(drawn)


def mean_action(info: Nested, act: Nested) -> Nested:
    """Return the actions ``"mean"`` of a deterministic policy: the structure of ``act``, ``(n_seq, B, ...)``.

    Parameters
    ----------
    info : nested float tensors, ``(n_seq, B, ...)``
        A mapping with ``"mean"``; for Dict and Tuple actions a nest of these.
    act : nested float tensors, ``(n_seq, B, ...)``
        Actions of the same space; only their structure and shapes are used.

    Raises
    ------
    TypeError
        The info is no mapping, or an action is no float tensor.
    ValueError
        The info lacks an entry, or an entry has another shape.
    """
    found: list[Tensor] = []

    def collect(info: Nested, act: Nested, path: str) -> None:
        if not isinstance(act, Tensor):
            for key, one in _items(act):
                collect(_child(info, key, path), one, f"{path}[{key!r}]")
        elif not act.is_floating_point():
            raise TypeError(f"Deterministic policies are for the real actions of a Box, got {act.dtype} actions.")
        else:
            found.append(check_rows(entry(info, "mean", path), "mean", act.shape[:2], *act.shape[2:]))

    collect(_policy_info(info), act, "")
    return nested.structure(act).unflatten(found)


def entry(info: Nested, name: str, path: str = "") -> Any:
    """Return an entry of an actor's info; ``path`` is where in the info it stands, for messages.

    Raises
    ------
    TypeError
        The info is no mapping.
    ValueError
        The info has no such entry.
    """
    if not isinstance(info, Mapping):
        raise TypeError(
            f"The actor's info{path} (in `fragment.actor`, or returned by the actor's `forward`) must be a mapping "
            f"from names to tensors, among them {name!r}; got {type(info).__name__}. An actor's `forward` returns "
            f"`act, hx, {{{name!r}: ..., ...}}`."
        )
    if name not in info:
        raise ValueError(f"The actor's info{path} lacks {name!r}; it has {sorted(info, key=str)}.")
    return info[name]


def check_rows(x: Any, name: str, lead: Sequence[int], *trailing: int | None, hint: str = "") -> Tensor:
    """Return ``x``; raise ValueError unless it is ``(n_seq, B, *trailing)`` with ``lead = (T, B)`` and ``n_seq >= T``.

    ``None`` in ``trailing`` is the number of actions, which may be any. ``hint`` is a further sentence of the message.
    """
    expected = ", ".join("A" if n is None else str(n) for n in ("n_seq", *lead[1:], *trailing))
    wanted = (*lead[1:], *trailing)
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    if (
        len(shape) != 1 + len(wanted)
        or shape[0] < lead[0]
        or any(n not in (m, None) for n, m in zip(wanted, shape[1:], strict=True))
    ):
        n_actions = " and A the number of actions" if None in trailing else ""
        got = shape if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"`{name}` must be (n_seq, B, ...) = ({expected}), with n_seq >= {lead[0]}{n_actions}; got {got}. If the "
            f"last dimension has size 1, remove it with `.squeeze(-1)`.{hint}"
        )
    checked: Tensor = x
    return checked


def _of(info: Nested, act: Nested, lead: Sequence[int], rows: _Rows, path: str) -> Policy:
    """Make the distribution of one space, or of a nest of spaces; ``path`` is where in the info it stands."""
    if isinstance(act, PreTanh):
        mean, log_std = (rows(check_rows(entry(info, name, path), name, lead, *act.x.shape[2:])) for name in _GAUSSIAN)
        if "pre_tanh" not in info:
            raise ValueError(
                f"`fragment.actor{path}` has 'pre_tanh', so the policy that collected the fragment is squashed, but "
                f"the actor's info has {sorted(info)}. Both must be policies of one kind."
            )
        return SquashedGaussian(mean, log_std, len(lead))
    if not isinstance(act, Tensor):
        items = _items(act)
        parts = [_of(_child(info, key, path), one, lead, rows, f"{path}[{key!r}]") for key, one in items]
        return Joint(parts, lambda act: [one for _, one in _items(act)])
    trailing = act.shape[len(lead) :]
    if act.is_floating_point():
        mean, log_std = (rows(check_rows(entry(info, name, path), name, lead, *trailing)) for name in _GAUSSIAN)
        if "pre_tanh" in info:
            raise ValueError(
                f"The actor's info{path} has 'pre_tanh', so its policy is squashed, but `fragment.actor{path}` has no "
                f"'pre_tanh', from which the density is computed. Collect with an actor whose info has it."
            )
        return Gaussian(mean, log_std, len(lead))
    logits = entry(info, "logits", path)
    if not trailing:
        return Categorical(rows(check_rows(logits, "logits", lead, None)))
    if isinstance(logits, Tensor):
        return Bits(rows(check_rows(logits, "logits", lead, *trailing, hint=_SEVERAL)), len(lead))
    if not isinstance(logits, Sequence) or len(logits) != trailing.numel():
        raise ValueError(
            f"`logits` must be a tuple of {trailing.numel()} tensors (n_seq, B, A), one for each component of the "
            f"MultiDiscrete action {tuple(act.shape)}; got {type(logits).__name__} of "
            f"{len(logits) if isinstance(logits, Sequence) else 1}."
        )
    parts = [Categorical(rows(check_rows(x, f"logits[{i}]", lead, None))) for i, x in enumerate(logits)]
    return Joint(parts, lambda act: act.flatten(len(lead)).unbind(dim=-1))


_GAUSSIAN = ("mean", "log_std")

_SEVERAL = (
    " (One tensor of logits is for independent bits, MultiBinary. Of MultiDiscrete, several discrete actions: a tuple "
    "of logits, one for each.)"
)


def _with_pre_tanh(info: Nested, act: Nested, n_steps: int | None) -> Nested:
    """Replace the actions of squashed policies by the first rows of their ``"pre_tanh"``; nests become dicts."""
    if not isinstance(act, Tensor):
        parts = ((key, _child(info, key, "") if info else (), one) for key, one in _items(act))
        return {key: _with_pre_tanh(child, one, n_steps) for key, child, one in parts}
    if act.is_floating_point() and isinstance(info, Mapping) and "pre_tanh" in info:
        return PreTanh(info["pre_tanh"][:n_steps])
    return act


def _policy_info(info: Nested) -> Nested:
    """Return the part of an actor's info that describes its policy."""
    return info["policy"] if isinstance(info, Mapping) and "policy" in info else info


def _items(act: Nested) -> list[tuple[Any, Nested]]:
    """Return the keys and the parts of a Dict or Tuple action, without parts that have no tensors."""
    if isinstance(act, Mapping):
        keys = act if isinstance(act, OrderedDict) else sorted(act)  # the order of its leaves in `nested`
        items: Iterable[tuple[Any, Nested]] = ((key, act[key]) for key in keys)
    elif isinstance(act, Sequence):
        items = enumerate(act)
    else:
        raise TypeError(
            f"Actions must be tensors, or mappings or tuples of them; got {type(act).__name__}. (The losses know "
            f"Discrete, MultiDiscrete, MultiBinary, Box, and Dict and Tuple of these.)"
        )
    return [(key, part) for key, part in items if nested.leaves(part)]


def _child(info: Nested, key: Any, path: str) -> Nested:
    """Return the info of one part of a Dict or Tuple action."""
    if isinstance(key, str):
        return entry(info, key, path)
    if isinstance(info, Sequence) and not isinstance(info, str) and key < len(info):
        return info[key]
    if isinstance(info, Mapping) and key in info:
        return info[key]
    raise ValueError(
        f"The info of a policy for a Tuple action must be a tuple with an element for each part, in the entry 'policy' "
        f"of the actor's info{path}; got {type(info).__name__}, which has no element {key}."
    )
