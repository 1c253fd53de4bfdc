"""Modules that are called as plainly as can be: ``module(...)`` is ``module.forward(...)``, and nothing else.

``torch.nn.Module.__call__`` looks for hooks first, at each call of each layer, and each of its parameters is found only
after Python has looked for it everywhere else: together a fifth of a small network's time. A behaviour copy whose
modules have no hooks need not look, and its modules know where their parameters are. Numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["make_fast"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NOTHING = object()
_STORES = ("_parameters", "_buffers", "_modules")


def make_fast(module: nn.Module) -> None:
    """Let a module, and all inside, call ``forward`` directly, but for those that have hooks or a call of their own.

    They become instances of subclasses made here. Hooks registered later, or for all modules there are, do not run.
    """
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for part in module.modules():
        if _is_plain(part):
            kinds.setdefault(type(part), []).append(part)
    for kind, parts in kinds.items():
        lean = _subclass(kind, parts)
        for part in parts:
            part.__class__ = lean


def _is_plain(part: nn.Module) -> bool:
    return (
        type(part).__call__ is nn.Module.__call__
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        and "forward" not in vars(part)  # an instance's own
        and not isinstance(part, torch.jit.ScriptModule)
    )


def _subclass(kind: type[nn.Module], parts: Iterable[nn.Module]) -> type[nn.Module]:
    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    body["__call__"] = kind.forward
    if kind.__getattr__ is nn.Module.__getattr__:
        for store in _STORES:
            for name in {name for part in parts for name in getattr(part, store)}:
                if not hasattr(kind, name):
                    body[name] = _attribute(store, name)
    return type(kind.__name__, (kind,), body)


def _attribute(store: str, name: str) -> property:
    """Look where it was when the class was made; if it is no longer there, wherever torch looks."""

    def read(module: nn.Module) -> Any:
        own = module.__dict__
        try:
            return own[store][name]
        except KeyError:
            return own[name] if name in own else nn.Module.__getattr__(module, name)

    def write(module: nn.Module, value: Any) -> None:
        module.__dict__[name] = value  # torch keeps its own apart: it is none of them any more

    def delete(module: nn.Module) -> None:
        if module.__dict__.pop(name, _NOTHING) is _NOTHING:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")

    return property(read, write, delete)
