"""Makes calls of modules faster: ``module(...)`` becomes ``module.forward(...)``, without torch's overhead.

``torch.nn.Module.__call__`` looks for hooks at each call of each layer, and ``self.weight`` is looked up in the class
and in the instance before ``nn.Module.__getattr__`` finds it. Together this is a fifth of a small network's time. The
modules of a behaviour copy that have no hooks skip it. Results are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["make_fast"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MISSING = object()
_STORES = ("_parameters", "_buffers", "_modules")


def make_fast(module: nn.Module) -> None:
    """Change the class of a module and its submodules to a subclass that calls ``forward`` directly.

    Modules that have hooks, or a ``__call__`` or an instance's ``forward`` of their own, are left as they are. Hooks
    that are registered later, and global module hooks, do not run.
    """
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for part in module.modules():
        if _is_plain(part):
            kinds.setdefault(type(part), []).append(part)
    for kind, parts in kinds.items():
        fast = _subclass(kind, parts)
        for part in parts:
            part.__class__ = fast


def _is_plain(part: nn.Module) -> bool:
    """Return whether calling the module does nothing but call the ``forward`` of its class."""
    return (
        type(part).__call__ is nn.Module.__call__
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        and "forward" not in vars(part)
        and not isinstance(part, torch.jit.ScriptModule)
    )


def _subclass(kind: type[nn.Module], parts: Iterable[nn.Module]) -> type[nn.Module]:
    """Make a subclass of ``kind`` with a property for each parameter, buffer and submodule of ``parts``."""
    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    body["__call__"] = kind.forward
    if kind.__getattr__ is nn.Module.__getattr__:
        for store in _STORES:
            for name in {name for part in parts for name in getattr(part, store)}:
                if not hasattr(kind, name):
                    body[name] = _attribute(store, name)
    return type(kind.__name__, (kind,), body)


def _attribute(store: str, name: str) -> property:
    """Make a property that looks first in ``store``, one of torch's dicts, and then wherever torch looks."""

    def read(module: nn.Module) -> Any:
        own = module.__dict__
        try:
            return own[store][name]
        except KeyError:
            return own[name] if name in own else nn.Module.__getattr__(module, name)

    def write(module: nn.Module, value: Any) -> None:
        # torch calls this only for a name that is in none of its own dicts any more
        module.__dict__[name] = value

    def delete(module: nn.Module) -> None:
        if module.__dict__.pop(name, _MISSING) is _MISSING:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")

    return property(read, write, delete)
