"""Compiles the graph of a step with TorchInductor, into a program for the host. Imports neither actors nor groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ....process_state import compiling
from ....sampling import Source
from .graph import StepGraph

__all__ = ["Program", "compile_graph", "copy_all"]

_INDUCTOR_OPTIONS: dict[str, Any] = {"size_asserts": False, "compile_threads": 1}
"""No checks of sizes, since the engine has checked them; no pool of compile processes, which would stay alive."""


class Program:
    """A compiled step, bound to the weights of the behaviour copy.

    Attributes
    ----------
    run : callable
        Takes a list of the operands, noise last, and empties it.
    next_values : list of Tensor
        The new values of ``updates`` after a run.
    bound : dict
        Cache of what :meth:`bind` returned, keyed by the ``id`` of rows and state; also keeps these alive.
    """

    def __init__(self, step: StepGraph, weights: dict[str, list[Tensor]]) -> None:
        """Compile the graph, which takes seconds unless it is in Inductor's cache on disk.

        Parameters
        ----------
        weights : dict
            The tensors of the kinds ``parameter`` and ``buffer``.
        """
        self._parameters = [weights["parameter"][i] for i in step.derived_from]
        self._derive = step.derive
        derived = [x.clone() for x in self._derive(*self._parameters)]
        self.next_values = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
            for (kind, _), x in zip(step.operands, _example_inputs(step.graph), strict=True)
            if kind == "next_value"
        ]
        self._updates = step.updates
        own = {"constant": step.constants, "derived": derived, "next_value": self.next_values}
        self._tensors = weights | own
        self._operands = [(kind, i) for kind, i in step.operands if kind != "noise"]
        self._draws = step.draws
        used = {i for kind, i in step.operands if kind == "noise"}
        self._unused_draws = [i for i in range(len(step.draws)) if i not in used]
        self.run = compile_graph(step.graph)
        if torch.is_autocast_enabled("cpu"):  # the casts are in the graph
            self.run = torch.autocast("cpu", enabled=False)(self.run)
        self.bound: dict[tuple[int, int], tuple[tuple[list[Tensor], list[Tensor]], Any]] = {}

    def bind(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the operands for these inputs, without noise, and the tensors to copy ``next_values`` into."""
        tensors = self._tensors | {"input": inputs}
        operands, targets = ([tensors[kind][i] for kind, i in them] for them in (self._operands, self._updates))
        return operands, targets

    def draw(self, source: Source) -> list[Tensor]:
        """Draw the noise that a run takes from the actor's own generator, and from torch's global one."""
        drawn = [draw.take(source) for draw in self._draws]
        for i in reversed(self._unused_draws):
            del drawn[i]
        return drawn

    def update_derived(self) -> None:
        """Compute what depends on the parameters alone, for their present values."""
        copy_all(self._tensors["derived"], list(self._derive(*self._parameters)))


def compile_graph(graph: GraphModule) -> Callable[[list[Tensor]], Any]:
    """Compile a graph with Inductor. The result takes one list of tensors, and empties the list."""
    with compiling(), torch.autocast("cpu", enabled=False):
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner

        with config.patch(_INDUCTOR_OPTIONS):
            compiled = compile_fx_inner(graph, _example_inputs(graph))
    # The object's own `__call__` also serves autotuning and the profiler, which takes as long as a small network.
    run: Callable[[list[Tensor]], Any] = getattr(compiled, "current_callable", None) or compiled
    return run


def _example_inputs(graph: GraphModule) -> list[Tensor]:
    """Return the inputs of a graph as fake tensors, which have no memory."""
    return [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into the target at the same place of the list."""
    if targets:
        torch._foreach_copy_(targets, sources)
