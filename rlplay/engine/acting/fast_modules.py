"""Makes calls of modules faster: without torch's overhead at each call of each layer.

``torch.nn.Module.__call__`` looks for hooks at each call, and finds ``self.weight`` only after it has looked in the
class and in the instance. Together this is a fifth of a small network's time. The modules of a behaviour copy skip it.
Their classes stay what they are, and results are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..core import BaseActorModule

__all__ = ["fast_step", "make_fast"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_global_hooks, _global_pre_hooks = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
_tanh = torch.tanh
_linear: Callable[..., Any] = torch.nn.functional.linear
_ROW_WISE = nn.Linear, nn.Tanh, nn.ReLU, nn.Identity
"""Layers that treat each row of the last dimension alike, whatever the other dimensions."""

_FORWARD: dict[type[nn.Module], Any] = {kind: kind.forward for kind in (nn.Linear, nn.Tanh, nn.Identity, nn.Sequential)}
"""The ``forward`` of these classes, as torch has it."""


def make_fast(module: nn.Module) -> None:
    """Let a module and its submodules call ``forward`` directly, as long as they have no hooks.

    Uses the attribute in which torch keeps the compiled call of a module, and which it drops when the module is copied
    or pickled; see also :class:`Submodules`. Modules that have hooks now, or a ``__call__`` or an instance's
    ``forward`` of their own, are left as they are. Forward hooks that are registered later run.
    """
    for part in list(module.modules()):
        if not isinstance(part, torch.jit.ScriptModule) and type(part).__getattr__ is nn.Module.__getattr__:
            part.__dict__["_modules"] = Submodules(part)
    for part in module.modules():
        if _is_plain(part):
            part.__dict__["_compiled_call_impl"] = _direct_call(part)


class Submodules(dict[str, Any]):
    """The submodules of a module, which are also attributes of the instance, where Python finds them at once.

    Whatever changes this dict, as torch does where a submodule is replaced or deleted, deletes that attribute; torch
    finds the submodule here then. A copy is an ordinary dict.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__(owner._modules)
        self.version = 0
        """Increases with each change."""
        self._attributes = owner.__dict__
        for name, part in self.items():
            if part is not None and name.isidentifier() and not hasattr(type(owner), name):
                self._attributes.setdefault(name, part)

    def _forget(self, name: Any) -> None:
        self.version += 1
        part = self.get(name)
        if part is not None and self._attributes.get(name) is part:
            del self._attributes[name]

    def __setitem__(self, name: str, part: Any) -> None:
        self._forget(name)
        super().__setitem__(name, part)

    def __delitem__(self, name: str) -> None:
        self._forget(name)
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a submodule and return it."""
        self._forget(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last submodule, and return its name and itself."""
        name = next(reversed(self))
        return name, self.pop(name)

    def clear(self) -> None:
        """Remove all submodules."""
        for name in list(self):
            del self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several submodules."""
        for name, part in dict(*args, **kwargs).items():
            self[name] = part

    def setdefault(self, name: str, part: Any = None) -> Any:
        """Return a submodule; set it if there is none."""
        if name not in self:
            self[name] = part
        return self[name]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


def fast_step(actor: BaseActorModule) -> Callable[..., Any]:
    """Return the ``step`` of an actor, as a function that calls ``forward`` directly if there is nothing else to do."""
    if "step" in vars(actor) or type(actor).step is not BaseActorModule.step or not _is_plain(actor):
        return actor.step
    own, with_hooks, hooks, pre_hooks = actor.forward, actor._call_impl, actor._forward_hooks, actor._forward_pre_hooks

    def step(stepno: Any, obs: Any, act: Any, rew: Any, fin: Any, /, *, hx: Any, virtual: bool) -> Any:
        call = with_hooks if hooks or pre_hooks or _global_hooks or _global_pre_hooks else own
        return call(obs, act=act, rew=rew, fin=fin, stepno=stepno, hx=hx, virtual=virtual)

    return step


def _is_plain(part: nn.Module) -> bool:
    """Return whether calling the module does nothing but call the ``forward`` of its class."""
    return (
        type(part).__call__ is nn.Module.__call__
        and type(part)._call_impl is nn.Module._call_impl
        and not any(getattr(part, hooks) for hooks in _HOOKS)
        and "forward" not in vars(part)
        and not isinstance(part, torch.jit.ScriptModule)
    )


def _direct_call(part: nn.Module) -> Callable[..., Any]:
    """Return what does the same as calling the module, unless hooks are registered: then it calls them.

    Layers that are called most often have calls of their own, which look nothing up in the class.
    """
    own, with_hooks = part.forward, part._call_impl
    hooks, pre_hooks = part._forward_hooks, part._forward_pre_hooks
    parameters, children = part._parameters, part._modules

    def call(*args: Any, **kwargs: Any) -> Any:
        if hooks or pre_hooks or _global_hooks or _global_pre_hooks:
            return with_hooks(*args, **kwargs)
        return own(*args, **kwargs)

    def call_linear(input: torch.Tensor) -> Any:
        if hooks or pre_hooks or _global_hooks or _global_pre_hooks:
            return with_hooks(input)
        try:
            return _linear(input, parameters["weight"], parameters["bias"])
        except KeyError:  # a plain attribute has replaced a parameter
            return own(input)

    def call_tanh(input: torch.Tensor) -> Any:
        if hooks or pre_hooks or _global_hooks or _global_pre_hooks:
            return with_hooks(input)
        return _tanh(input)

    def call_identity(input: Any) -> Any:
        if hooks or pre_hooks or _global_hooks or _global_pre_hooks:
            return with_hooks(input)
        return input

    def call_sequential(input: Any) -> Any:
        if hooks or pre_hooks or _global_hooks or _global_pre_hooks:
            return with_hooks(input)
        if rows is not None and type(input) is torch.Tensor and input.ndim == 3 and rows.can_take(input):
            return rows(input)
        for child in children.values():
            # torch declares this attribute as None for modules that have no other call than `__call__`
            input = (child._compiled_call_impl or child)(input)  # type: ignore[union-attr, misc]
        return input

    rows = _Rows(children) if type(part) is nn.Sequential and isinstance(children, Submodules) else None
    special: dict[Any, Callable[..., Any]] = {
        nn.Linear: call_linear,
        nn.Tanh: call_tanh,
        nn.Identity: call_identity,
        nn.Sequential: call_sequential,
    }
    kind = type(part)
    if _FORWARD.get(kind) is not kind.forward:
        return call
    special[kind].__qualname__ = kind.forward.__qualname__  # which errors about wrong arguments name
    return special[kind]


class _Rows:
    """The layers of a ``Sequential``, called with all rows in two dimensions: for that torch takes half the time.

    torch's linear layers also bring inputs of three dimensions to two and back, but each layer does so for itself.
    """

    def __init__(self, children: Submodules) -> None:
        self._children, self._version = children, -1
        self._hooks: list[dict[Any, Any]] = []
        self._calls: list[Callable[[torch.Tensor], torch.Tensor]] = []

    def can_take(self, input: torch.Tensor) -> bool:
        """Return whether all layers treat rows alike, none has a hook, and the input need not be copied."""
        if self._version != self._children.version:
            self._version = self._children.version
            layers = list(self._children.values())
            self._hooks = [hooks for layer in layers for hooks in (layer._forward_hooks, layer._forward_pre_hooks)]
            plain = all(type(layer) in _ROW_WISE and _is_plain(layer) for layer in layers)
            self._calls = [layer._compiled_call_impl or layer for layer in layers] if plain else []
        return bool(self._calls) and input.is_contiguous() and not any(self._hooks)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Call all layers with an input of three dimensions, and return an output of three dimensions."""
        n, m, width = input.shape
        x = input.view(n * m, width)
        for call in self._calls:
            x = call(x)
        return x.view(n, m, x.shape[1])
