"""Modules that are called as plainly as can be: ``module(...)`` is ``module.forward(...)``, and nothing else.

``torch.nn.Module.__call__`` looks for hooks first, at each call of each layer, which takes a fifth of a small network's
time. A behaviour copy whose modules have none need not look. Numbers are the same, bit for bit.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["make_lean"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def make_lean(module: nn.Module) -> None:
    """Let a module, and all inside, call ``forward`` directly, but for those that have hooks or a call of their own.

    They become instances of subclasses made here. Hooks registered later, or for all modules there are, do not run.
    """
    lean: dict[type[nn.Module], type[nn.Module]] = {}
    for part in module.modules():
        kind = type(part)
        if _is_plain(part):
            if kind not in lean:
                named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
                lean[kind] = type(kind.__name__, (kind,), {"__call__": kind.forward, **named})
            part.__class__ = lean[kind]


def _is_plain(part: nn.Module) -> bool:
    return (
        type(part).__call__ is nn.Module.__call__
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        and "forward" not in vars(part)  # an instance's own
        and not isinstance(part, torch.jit.ScriptModule)
    )
