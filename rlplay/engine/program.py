"""A graph, compiled into C++ by TorchInductor, and the tensors that it is called with. Not: actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .traced import Traced, compiling

__all__ = ["Program", "compiled", "copy_all"]

_OPTIONS: dict[str, Any] = {"size_asserts": False, "compile_threads": 1}
"""The engine has looked at shapes and dtypes itself, and wants no processes that stay."""


class Program:
    """A step, compiled."""

    def __init__(self, traced: Traced, weights: dict[str, list[Tensor]]) -> None:
        """Compile it, which takes seconds; less, if it is in the compiler's cache on disk."""
        self._parameters, self._fold = [weights["parameter"][i] for i in traced.folds], traced.fold
        folded = [x.clone() for x in self._fold(*self._parameters)]
        forms = zip(traced.takes, _forms(traced.graph), strict=True)
        self.next = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
            for (kind, _), x in forms
            if kind == "next"
        ]
        self._changes = traced.changes
        self._kinds = weights | {"constant": traced.constants, "folded": folded, "next": self.next}
        self._takes = [(kind, i) for kind, i in traced.takes if kind != "noise"]
        self.noise = traced.noise
        self.run = compiled(traced.graph)
        if torch.is_autocast_enabled("cpu"):  # the casts are in the graph
            self.run = torch.autocast("cpu", enabled=False)(self.run)
        self.bound: dict[tuple[int, int], tuple[tuple[list[Tensor], list[Tensor]], Any]] = {}
        """What is put in for rows that are known by their ``id``; and these, which must live as long."""

    def bind(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Choose what is put in, but for the noise, and where what is ``next`` is copied."""
        kinds = self._kinds | {"input": inputs}
        takes, changes = ([kinds[kind][i] for kind, i in places] for places in (self._takes, self._changes))
        return takes, changes

    def fold(self) -> None:
        """Work out anew what depends on the parameters alone."""
        copy_all(self._kinds["folded"], list(self._fold(*self._parameters)))


def compiled(graph: GraphModule) -> Callable[[list[Tensor]], Any]:
    """Compile a graph that has been taken apart already. What is returned empties the list that it is given."""
    with compiling(), torch.autocast("cpu", enabled=False):
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner

        with config.patch(_OPTIONS):
            return compile_fx_inner(graph, _forms(graph))


def _forms(graph: GraphModule) -> list[Tensor]:
    """What a graph takes, as tensors without memory."""
    return [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each tensor into its target."""
    if targets:
        torch._foreach_copy_(targets, sources)
