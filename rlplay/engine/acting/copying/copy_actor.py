"""Copies an actor, and refuses it if the copy would still reach modules or weights of the original."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from ...core import BaseActorModule
from ..weights import named_weights
from .follow import Follower, note_weak
from .parts import VARIABLE
from .shared_memory import Memory, SharedView, check_arrays, copy_weights_into
from .walk import Place, Walk

__all__ = ["ActorCopy", "copy_actor"]


class ActorCopy(NamedTuple):
    """A copy of an actor."""

    module: BaseActorModule
    shared: list[SharedView]
    """What shares memory with weights of the original, and does so in the copy."""


def copy_actor(actor: BaseActorModule, device: torch.device, known: Mapping[int, Any] | None = None) -> ActorCopy:
    """Copy an actor to a device, without gradients, so that the copy reaches nothing of the original.

    Functions, bound methods and weak references that refer to the original refer to the copy instead, and views of
    weights become views of the copied weights.

    Parameters
    ----------
    known : mapping of int to object, optional
        What is to take the place of some objects, by their ``id``.

    Raises
    ------
    TypeError
        If the actor cannot be copied, if the copy would reach modules or weights of the original, or if arrays share
        memory: the message has the path to them.
    """
    originals = Walk(actor, with_code=False)
    for place in originals:
        if type(place.value) is FunctionType and hasattr(place.value, "_torchdynamo_orig_callable"):
            raise TypeError(
                f"`{place.path}` is a function made by torch.compile, so that the copy would go on using the "
                "original's weights: leave the actor as it is, and keep what the learner compiles outside of it."
            )
    modules = dict(actor.named_modules())
    weights = named_weights(modules)
    check_arrays(originals, weights)
    memo: dict[Any, Any] = dict(known or {})
    shared = copy_weights_into(memo, originals, weights, device)
    containers = note_weak(memo, originals)
    try:
        copied = copy.deepcopy(actor, memo).to(device).requires_grad_(False)
    except Exception as error:
        raise TypeError(
            f"the actor cannot be copied: copy.deepcopy failed with {error!r}. {_remedy_for(modules)}"
        ) from error
    own = dict(copied.named_modules())
    pairs = [(modules, own), (weights, named_weights(own))]
    for mine, theirs in pairs:  # what a __deepcopy__ of the user's has copied in its own way
        for name in mine.keys() & theirs.keys():
            if mine[name] is not theirs[name]:
                memo.setdefault(id(mine[name]), theirs[name])
    follower = Follower(memo)
    follower.follow(copied)
    for original, empty in containers:
        follower.fill(original, empty)
    for module in own.values():
        for name in ("_compiled_call_impl", *module._modules):  # what makes calls of the original fast
            module.__dict__.pop(name, None)
    _check(copied, originals, memo, {id(x) for mine, _ in pairs for x in mine.values()}, weights)
    return ActorCopy(copied, shared)


def _check(
    copied: BaseActorModule,
    originals: Walk,
    memo: dict[Any, Any],
    learned: set[int],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Check that the copy reaches nothing of the original.

    Parameters
    ----------
    learned : set of int
        The ``id`` of the original's modules and weights. They must not be reached at all; of the other objects that
        have a copy, the originals may be reached by global variables and class attributes.
    """
    memory = Memory(weights)
    copies = {id(value) for value in memo.values()}
    own = {id(x) for x in (*copied.modules(), *copied.parameters(), *copied.buffers())}
    for place in Walk(copied, with_code=True):
        key, value = id(place.value), place.value
        beside = memory.weight_beside(value)
        original = originals.place_of(key)
        has_copy = original is not None and memo.get(key, value) is not value
        if key in learned or beside is not None or (has_copy and not place.by_code):
            name = original.path if original is not None else f"memory of its weight {beside!r}"
            raise TypeError(_refusal(place, "the actor itself" if name == "actor" else f"the learner's `{name}`"))
        explained = place.by_code or key in copies or key in own or value in originals
        explained = explained or type(value) in weakref.ProxyTypes  # what it refers to has a place of its own
        if isinstance(value, nn.Module | nn.Parameter) and not explained:
            raise TypeError(
                f"`{place.path}` is not copied with the actor, since what holds it has a __deepcopy__ that does not "
                "pass its argument `memo` on: the copy would go on using the first weights. Call "
                "`copy.deepcopy(part, memo)` there."
            )


def _remedy_for(modules: Mapping[str, nn.Module]) -> str:
    """Return what to do about an actor that cannot be copied."""
    for name, module in modules.items():
        for hook in module._forward_pre_hooks.values():
            old = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}.get(type(hook).__name__)
            if old:
                return (
                    f"Its {name!r} has torch.nn.utils.{old}, which keeps the weight as an attribute: use "
                    f"torch.nn.utils.parametrizations.{old}."
                )
    return (
        "Tensors that it keeps must be parameters, buffers or detached; make what cannot be copied inside `step`, or "
        "define __deepcopy__."
    )


def _refusal(place: Place, what: str) -> str:
    holder, _, variable = place.path.partition(VARIABLE)
    cache: Place | None = place
    while cache is not None and not hasattr(cache.value, "cache_clear"):
        cache = cache.parent
    if variable:
        head, by = f"`{holder}` is a function that refers to {what}", f" by its variable `{variable}`"
        remedy = "make it a method, or pass what it uses as an argument, or keep what it uses in the actor alone"
    elif cache is not None:
        head, by = f"`{cache.path}` has a cache of functools, which refers to {what}", ""
        remedy = "keep what it computes in an attribute of the actor instead, or call its `cache_clear()` before"
    else:
        head, by = f"`{holder}` is, or refers to, {what}", ""
        remedy = "keep modules and weights in the actor itself, where they are copied (mind a __deepcopy__ of its own)"
    return f"{head}{by}, so that the behaviour copy would go on using the original's weights: {remedy}."
