"""The forms of what a vector environment in torch returns: checked, and brought to those of rlplay.

All functions work on the environment's device, and none reads a value of a tensor: the host does not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..envs import spaces
from ..envs.info import MISSING, Entries, Entry, look_up
from ..envs.spaces import Field
from ..memory.layout import dtype_of, numpy_dtype_of

__all__ = ["ActionForm", "InfoForm", "ObservationForm", "shown", "single_fields", "to_flags", "to_rewards", "wide"]

_REMEDY = "Have the environment keep it there: a copy from another device at each step would make the host wait."


def shown(value: Any) -> str:
    """Describe a value by its type, and a tensor by shape, dtype and device, without reading it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, dtype {value.dtype}, on {value.device}"
    return f"{value!r:.80} ({type(value).__name__})"


def to_rewards(value: Any, n: int, device: torch.device) -> Tensor:
    """Return rewards as a tensor ``(n,)``; they may be ``(n,)`` or ``(n, 1)``, of any real dtype.

    Raises
    ------
    ValueError
        They are not one number for each of the ``n`` parts, on the device of the observations.
    """
    return _one_each(value, n, "the reward", device)


def to_flags(value: Any, n: int, name: str, device: torch.device) -> Tensor:
    """Return flags as a bool tensor ``(n,)``; they may be ``(n,)`` or ``(n, 1)``, bools or numbers.

    Raises
    ------
    ValueError
        There is not one flag for each of the ``n`` parts, on the device of the observations; the message calls them
        ``name``.
    """
    flags = _one_each(value, n, f"`{name}`", device)
    return flags if flags.dtype == torch.bool else flags != 0


def _one_each(value: Any, n: int, name: str, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor) or value.shape not in ((n,), (n, 1)) or value.dtype.is_complex:
        raise ValueError(
            f"expected {name} of the vector environment to be a tensor of one number for each of its {n} parts, of "
            f"shape ({n},) or ({n}, 1), got {shown(value)}."
        )
    if value.device != device:
        raise ValueError(
            f"expected {name} of the vector environment to be on {device}, where its observations are, got "
            f"{shown(value)}. {_REMEDY}"
        )
    return value.reshape(n) if value.ndim == 2 else value


def single_fields(env: Any, obs: Nested) -> tuple[Nested, Nested]:
    """Return the fields of one part's observation and action.

    Some simulators call spaces single that have the dimension of the batch already. An observation shows it: then its
    shape is that of the space. The action space is one of these if it is equal to ``action_space`` in shape as well.

    Raises
    ------
    TypeError, ValueError
        The spaces cannot be recorded, or the observation is not nested as its space is.
    """
    n = int(env.num_envs)
    described, acted = spaces.fields(env.single_observation_space), spaces.fields(env.single_action_space)
    along, parts = spaces.along_with_parts(described, obs)
    pairs = list(zip(nested.leaves(along), parts, strict=True))
    batched = all(_has_batch(field, n) and tuple(getattr(part, "shape", ())) == field.shape for field, part in pairs)
    if batched and pairs:
        described = nested.map(lambda field: _of_one(field, n), described)
    whole, shapes = getattr(env, "action_space", None), _shapes(acted)
    if whole is not None and all(_has_batch(field, n) for field in nested.leaves(acted)):
        if_one = nested.map(lambda field: _of_one(field, n), acted)
        acted = if_one if _shapes(spaces.fields(whole)) == shapes else acted
    return described, acted


def _shapes(fields: Nested) -> list[tuple[int, ...]]:
    return [field.shape for field in nested.leaves(fields)]


def _has_batch(field: Field, n: int) -> bool:
    return field.shape[:1] == (n,)


def _of_one(field: Field, n: int) -> Field:
    """Return the field of one part, out of one that has the dimension of the batch."""

    def first(values: Any, name: str) -> Any:
        if not isinstance(values, tuple):
            return values
        if len(set(values)) > 1:
            raise ValueError(f"expected a space with the same `{name}` for each of {n} parts, got {values!r:.80}.")
        return values[0]

    return replace(field, shape=field.shape[1:], n=first(field.n, "n"), start=first(field.start, "start"))


class ObservationForm:
    """The form of the observations of ``n`` parts: the containers, and for each leaf shape, dtype and device.

    Attributes
    ----------
    fields : nested Field
        Those of one part's observation, in the containers of the first one.
    """

    def __init__(self, described: Nested, first: Nested, n: int) -> None:
        """Find the containers of the observations. ``described`` are the fields of one part's observation space."""
        self.fields, parts = spaces.along_with_parts(described, first)
        self._leaves, self._structure = nested.flatten(self.fields)
        self._names, self._n = nested.names(self.fields, "obs"), n
        self._starts: list[Tensor | None] = [None for _ in self._leaves]
        self._known: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        devices = {part.device if isinstance(part, Tensor) else None for part in parts}
        if len(devices) > 1 or None in devices:
            listed = ", ".join(f"{name}: {shown(x)}" for name, x in zip(self._names, parts, strict=True))
            raise TypeError(f"expected all leaves of the observation to be tensors on one device, got {listed}.")
        self._check(parts)
        self._known = [(part.shape, part.dtype, part.device) for part in parts]
        self._starts = [_start_of(field, part) for field, part in zip(self._leaves, parts, strict=True)]

    def leaves(self, obs: Nested, name: str = "obs") -> list[Tensor]:
        """Return the leaves of the observations, ``(n, ...)``, counted from 0 where their space is counted.

        They may be views of the environment's own memory.

        Raises
        ------
        ValueError
            The containers, a shape, a dtype or a device does not fit; the message calls the observations ``name``.
        """
        try:
            parts: list[Any] = self._structure.flatten_up_to(obs)
        except ValueError:  # of containers that are leaves to `nested`, or wrong
            parts = spaces.along_with_parts(self.fields, obs, name)[1]
        if [(part.shape, part.dtype, part.device) for part in parts] != self._known:
            self._check(parts, name)
        return [x if start is None else x - start for x, start in zip(parts, self._starts, strict=True)]

    def _check(self, parts: list[Any], name: str = "obs") -> None:
        for k, (field, part) in enumerate(zip(self._leaves, parts, strict=True)):
            fits = isinstance(part, Tensor) and tuple(part.shape) == (self._n, *field.shape)
            fits = fits and (not self._known or part.device == self._known[k][2])
            if not fits or not field.accepts(numpy_dtype_of(part.dtype)):
                where = f" on {self._known[k][2]}" if self._known else ""
                raise ValueError(
                    f"{name}{self._names[k].removeprefix('obs')}: expected a tensor of {self._n} parts, each of "
                    f"{field}{where}, got {shown(part)}."
                )


def _start_of(field: Field, like: Tensor) -> Tensor | None:
    return torch.tensor(field.start, dtype=dtype_of(field.dtype), device=like.device) if field.start else None


class ActionForm:
    """The form of the actions that an environment gets: new tensors, in the values and dtype of its space."""

    def __init__(self, fields: Nested, device: torch.device) -> None:
        """Take the fields of one part's action space."""
        self._fields: list[Field]
        self._fields, self._structure = nested.flatten(fields)
        like = torch.empty(0, device=device)
        self._starts = [_start_of(field, like) for field in self._fields]
        self._dtypes = [None if f.own_dtype is None else dtype_of(f.own_dtype) for f in self._fields]

    def given(self, leaves: list[Tensor]) -> Nested:
        """Return copies of the leaves ``(n, ...)``, as the environment has them, in the containers of the space."""
        made = []
        for leaf, start, dtype in zip(leaves, self._starts, self._dtypes, strict=True):
            action = leaf.clone() if start is None else leaf + start
            made.append(action if dtype is None else action.to(dtype))
        return self._structure.unflatten(made)


class InfoForm:
    """Records entries of the infos, each a tensor for all parts or one number for all of them."""

    def __init__(self, entries: Entries, n: int, device: torch.device) -> None:
        self._entries, self._n, self._device = entries, n, device
        self._paths = [(entry, entry.name.split(".")) for entry in entries.entries]

    def record(self, infos: Any, into: list[Tensor], recorded: Tensor | None, ended: Tensor | None) -> None:
        """Write the entries, of one transition, into tensors ``(n, ...)``; absent ones are NaN, 0 or False.

        Parameters
        ----------
        recorded : bool tensor ``(n,)``, or None
            Where the transition was carried out; elsewhere entries are absent. None: everywhere.
        ended : bool tensor ``(n,)``, or None
            Where an episode has ended and its info is in ``infos["final_info"]``, if that is there.

        Raises
        ------
        ValueError
            An entry is neither a tensor that fits, on the device of the observations, nor a number.
        """
        last: Any = infos.get("final_info") if ended is not None else None
        last = last if isinstance(last, Mapping) else {}
        for (entry, path), leaf in zip(self._paths, into, strict=True):
            value, told = self._find(infos, entry, path), self._told(infos, entry, path)
            at_end, told_at_end = self._find(last, entry, path), self._told(last, entry, path)
            if value is MISSING:
                value, told = at_end, told_at_end  # all infos may be there, also those of other parts
            if value is MISSING:
                leaf.fill_(entry.absent)
            elif isinstance(value, Tensor):
                leaf.copy_(value)
            else:
                leaf.fill_(value)
            for mask in told:
                leaf.masked_fill_(~wide(mask, leaf), entry.absent)
            if at_end is not MISSING and ended is not None:
                at_end = at_end.to(leaf.dtype) if isinstance(at_end, Tensor) else at_end
                where = torch.stack([ended, *told_at_end]).all(dim=0)
                leaf.copy_(torch.where(wide(where, leaf), at_end, leaf))
            if recorded is not None:
                leaf.masked_fill_(~wide(recorded, leaf), entry.absent)

    def _told(self, infos: Mapping[str, Any], entry: Entry, path: list[str]) -> list[Tensor]:
        """Return the masks ``_name`` of an entry and of the dicts around it: they say which parts have the entry."""
        masks, inside = [infos.get(f"_{entry.name}")], infos
        for key in path:
            if not isinstance(inside, Mapping):
                break
            masks.append(inside.get(f"_{key}"))
            inside = inside.get(key, {})
        return [x for x in masks if isinstance(x, Tensor) and x.dtype == torch.bool and tuple(x.shape) == (self._n,)]

    def _find(self, infos: Mapping[str, Any], entry: Entry, path: list[str]) -> Any:
        """Return an entry as a tensor ``(n, ...)`` or one number for all parts, or ``MISSING``."""
        value = infos.get(entry.name, MISSING)
        if value is MISSING and len(path) > 1:
            value = look_up(infos, path)
        if value is MISSING:
            return value
        self._entries.untold.discard(entry.name)
        shape, field = (self._n, *entry.field.shape), entry.field
        if isinstance(value, bool | int | float) and _holds_number(field, value):
            return value
        if isinstance(value, Tensor) and value.device != self._device:
            raise ValueError(
                f"info entry {entry.name!r}: expected a tensor on {self._device}, where the observations are, or a "
                f"number for all parts, got {shown(value)}. {_REMEDY}"
            )
        if isinstance(value, Tensor) and _holds_all(field, numpy_dtype_of(value.dtype)):
            if tuple(value.shape) in (shape, field.shape):
                return value.detach().expand(shape)
            if tuple(value.shape) == (self._n, 1) and not field.shape:
                return value.detach().reshape(shape)
        raise ValueError(
            f"info entry {entry.name!r}: expected a tensor for all {self._n} parts, of shape {shape} and a dtype "
            f"whose values {field.dtype} can hold, got {shown(value)}. Name such entries only, by dotted names where "
            "they are inside of dicts, and give an example value where the form is another: "
            f"`info={{{entry.name!r}: <example of one part>}}`."
        )


def _holds_number(field: Field, value: float) -> bool:
    if isinstance(value, int) and field.dtype.kind in "iu":
        return bool(np.iinfo(field.dtype).min <= value <= np.iinfo(field.dtype).max)
    return field.accepts(np.asarray(value).dtype)


def _holds_all(field: Field, dtype: np.dtype[Any]) -> bool:
    """Return whether a field can hold every value of a dtype. Values are not read, since the host would wait."""
    return field.accepts(dtype) and (field.dtype.kind not in "iu" or np.can_cast(dtype, field.dtype))


def wide(mask: Tensor, like: Tensor) -> Tensor:
    """Append dimensions of size 1 to a mask ``(n,)``, so that it broadcasts over a tensor ``(n, ...)``."""
    return mask.view(-1, *(1,) * (like.ndim - 1))
