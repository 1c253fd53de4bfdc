"""Saves one environment, with all wrappers and inner environments, and restores it in place.

All objects stay where they are: what is saved are the attributes of each part. So it does not matter how a part itself
would be pickled, and references between parts, and from outside, stay right. An innermost environment that can save
itself is asked for its state instead.

====================================  ==================================================================================
innermost part has                    what is saved of it
====================================  ==================================================================================
``get_state`` and ``set_state``       what ``get_state`` returns
``clone_state``, ``restore_state``    what ``clone_state`` returns, random numbers included (ale-py: and :mod:`.ale`)
neither                               all attributes, by pickling
====================================  ==================================================================================

In the first two cases the random generator and the spaces that gym's base class holds are saved beside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...concurrency.progress import Progress
from ..dialects import takes
from .ale import restore_ale, save_ale
from .parts import Part, attributes_of, kind_of, named_in_script, parts_of, stays, walk_functions
from .pickling import dumps, find_culprit, loads

__all__ = ["RESTART_OR_STATE", "restore_environment", "save_environment"]

_OF_BASE_CLASS = ("_np_random", "_np_random_seed", "np_random", "action_space", "observation_space")

RESTART_OR_STATE = (
    "Give it methods `get_state()` and `set_state(state)`, or save with `feed.state_dict(environments='restart')`, "
    "which begins new episodes"
)


class _Plain:
    pass


def save_environment(env: Any, number: int, progress: Progress) -> dict[str, Any]:
    """Return the state of an environment, as a dict of strings and bytes. The environment stays as it is.

    Parameters
    ----------
    number : int
        The number of the environment in the feed, for messages.
    progress : Progress
        Where it is noted that this environment is being saved.

    Raises
    ------
    TypeError
        Something in it cannot be saved; the message has the path to it.
    """
    with progress.during("env.save", number):
        return _save(env, number)


def _save(env: Any, number: int) -> dict[str, Any]:
    parts = parts_of(env)
    kept = {id(one): key for key, one in _kept_objects(parts).items()}
    attributes: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    for k, part in enumerate(parts):
        own = _own_methods(part)
        if own is None:
            _check_whole(part, number)
            attributes.append({name: x for name, x in attributes_of(part.env).items() if not stays(name)})
        else:
            attributes.append({name: x for name, x in attributes_of(part.env).items() if name in _OF_BASE_CLASS})
            try:
                states[k] = own[0]()
            except Exception as error:
                raise TypeError(
                    f"environment {number} cannot be saved: `get_state` or `clone_state` of `{part.path}`, a "
                    f"{kind_of(part.env)}, raised {error!r}. {RESTART_OR_STATE}."
                ) from error
    try:
        data = dumps((attributes, states), kept)
    except Exception as error:
        raise _refusal(parts, attributes, states, kept, number) or error from error
    return {"kinds": [kind_of(part.env) for part in parts], "data": data}


def restore_environment(env: Any, saved: dict[str, Any], number: int, progress: Progress) -> None:
    """Put an environment into the state that :func:`save_environment` returned.

    The state is unpickled, which may run any code that is in it. ``number`` and ``progress`` are as there.

    Raises
    ------
    ValueError
        The environment consists of other parts than the one that was saved, or its state cannot be read.
    """
    with progress.during("env.restore", number):
        _restore(env, saved, number)


def _restore(env: Any, saved: dict[str, Any], number: int) -> None:
    parts = parts_of(env)
    kinds = [kind_of(part.env) for part in parts]
    if kinds != saved["kinds"]:
        raise ValueError(
            f"the state is of another environment: environment {number} was {' > '.join(saved['kinds'])}, and is "
            f"{' > '.join(kinds)}. Pass environments that are made and wrapped alike."
        )
    try:
        attributes, states = loads(saved["data"], _kept_objects(parts))
    except Exception as error:
        raise ValueError(f"the state of environment {number} cannot be read: {error!r}.") from error
    for k, (part, values) in enumerate(zip(parts, attributes, strict=True)):
        own = attributes_of(part.env)
        if k not in states:
            for name in [name for name in own if name not in values and not stays(name)]:
                del own[name]
        own.update(values)
    for k, state in states.items():
        methods = _own_methods(parts[k])
        if methods is None:
            raise ValueError(f"environment {number}: `{parts[k].path}` can no longer restore its own state.")
        try:
            methods[1](state)
        except Exception as error:
            raise ValueError(f"the state of environment {number} does not fit `{parts[k].path}`: {error!r}.") from error


def _kept_objects(parts: list[Part]) -> dict[tuple[Any, ...], Any]:
    """Return what is not pickled, by keys: the parts, functions without a name, and what has a name in the script."""
    kept: dict[tuple[Any, ...], Any] = {(k,): part.env for k, part in enumerate(parts)}
    for k, part in enumerate(parts):
        for name, value in attributes_of(part.env).items():
            kept.update(walk_functions(value, (k, name)))
    return kept | {("script", name): one for name, one in named_in_script(parts).items()}


def _own_methods(part: Part) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """Return the methods by which an innermost environment saves and restores itself; None if it has none."""
    if not part.innermost:
        return None
    if any(f"{cls.__module__.partition('.')[0]}.{cls.__name__}" == "ale_py.AtariEnv" for cls in type(part.env).__mro__):
        return partial(save_ale, part.env), partial(restore_ale, part.env)
    for save, restore in (("get_state", "set_state"), ("clone_state", "restore_state")):
        if callable(getattr(type(part.env), save, None)) and callable(getattr(type(part.env), restore, None)):
            method = getattr(part.env, save)
            options = {"include_rng": True} if takes(method, "include_rng") else {}
            return partial(method, **options), getattr(part.env, restore)
    return None


def _check_whole(part: Part, number: int) -> None:
    """Check that all that a part holds is in its attributes.

    Raises
    ------
    TypeError
        Its class has slots, or is written in another language.
    """
    # a class written in C, or with slots, has larger instances than a plain class
    if not hasattr(part.env, "__dict__") or type(part.env).__basicsize__ > _Plain.__basicsize__:
        raise TypeError(
            f"environment {number} cannot be saved: `{part.path}`, a {kind_of(part.env)}, keeps something outside of "
            f"its `__dict__` (slots, or a class that is not written in Python). {RESTART_OR_STATE}."
        )


def _refusal(
    parts: list[Part],
    attributes: list[dict[str, Any]],
    states: dict[int, Any],
    kept: dict[int, tuple[Any, ...]],
    number: int,
) -> TypeError | None:
    """Return an error that names what cannot be pickled."""
    named = [(part.path, name, one) for part, own in zip(parts, attributes, strict=True) for name, one in own.items()]
    named += [(parts[k].path, "<its own state>", state) for k, state in states.items()]
    for path, name, value in named:
        found = find_culprit(value, f"{path}.{name}", kept)
        if found is not None:
            where, culprit, why = found
            return TypeError(
                f"environment {number} cannot be saved: `{where}`, a {kind_of(culprit)}, does not pickle: {why}. "
                f"{RESTART_OR_STATE}."
            )
    return None
