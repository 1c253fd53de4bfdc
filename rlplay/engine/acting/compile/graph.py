"""A step as a graph of tensor operations: how it is found, and why some steps have none.

The graph takes all that the step reads, weights and noise included, and room for all that it writes. What can be worked
out of the parameters alone is a graph of its own, which need not run every time. Knows neither compilers nor actors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .step_checks import NoGraph, ReplayedNoise

__all__ = ["StepGraph", "compiling", "make_graph", "Program", "compiled", "copy_all"]

Place = tuple[str, int]

_SMALL = 2**17
"""Up to how many multiplications a product of matrices is better written out than left to a library."""


class StepGraph(NamedTuple):
    """A step as a graph, and what to put in."""

    graph: GraphModule
    """Takes a tensor for each of ``takes``, and returns nothing."""
    takes: list[Place]
    """Which tensors: ``("parameter", 3)`` is the fourth parameter. The other kinds are ``buffer``, ``constant``,
    ``input``, ``folded``, ``next``, and last, in their order, ``noise``."""
    changes: list[Place]
    """Buffers, and inputs that are read too, to which ``next`` is to be copied afterwards: compilers are not to be
    trusted with reading and writing one tensor, of which a view may be wanted as it was."""
    fold: GraphModule
    """Takes the parameters of the numbers ``folds``, and returns those that are ``folded``."""
    folds: list[int]
    constants: list[Tensor]
    noise: list[tuple[torch.Size, torch.dtype]]
    """Of the noise that it takes: all of it that matters."""
    key: Any
    """Equal for graphs that do the same with the same constants."""


@contextmanager
def compiling() -> Iterator[None]:
    """Compile, or trace: one at a time in this process, with torch's own compiler counted in.

    What is hooked or configured meanwhile is everybody's. Nor is what torch warns its own modules of of any concern.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._dynamo.convert_frame import compile_lock

        with compile_lock:
            yield


def make_graph(
    step: Callable[..., None],
    inputs: Sequence[Tensor],
    n_read: int,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    noise: ReplayedNoise,
) -> StepGraph:
    """Find the graph of a step.

    Parameters
    ----------
    step : callable
        Takes ``inputs``, and writes its answers into some of them.
    n_read : int
        How many inputs, the first ones, are read. The others are only written, in full.
    parameters, buffers : sequence of Tensor
        What it may read besides; buffers it may change.
    noise : Noise
        What it draws from, and has drawn from once. Every shape and dtype is to be the same again.

    Raises
    ------
    NoGraph
        If there is none.
    Exception
        Whatever comes of a step that asks for numbers while there are none: data-dependent control flow, numpy.
    """
    with compiling():
        from torch._inductor.decomposition import select_decomp_table
        from torch.fx.experimental.proxy_tensor import make_fx

        noise.rewind()
        raw = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        held = _lifted(raw)
        with torch.autocast("cpu", enabled=False):  # the casts are in the graph already
            pure = torch.func.functionalize(raw, remove="mutations")
            table = select_decomp_table() | {overload: _written_out(overload) for overload in (_mm, _addmm)}
            graph = make_fx(pure, decomposition_table=table, tracing_mode="fake")(*held, *inputs).graph
    every = [*held, *inputs]
    kinds = {"parameter": parameters, "buffer": buffers, "noise": noise.given, "input": inputs}
    known = {id(x): (kind, i) for kind, tensors in kinds.items() for i, x in enumerate(tensors)}
    constants = [x for x in held if id(x) not in known]
    known |= {id(x): ("constant", i) for i, x in enumerate(constants)}
    places: dict[Node, Place] = dict(
        zip(graph.find_nodes(op="placeholder"), (known[id(x)] for x in every), strict=True)
    )
    _check(graph, dict(zip(places, every, strict=True)), places)
    changes = _apart(graph, places, n_read)
    rest, takes, fold, folds = _split(graph, places)
    forms = [(x.shape, x.stride(), x.dtype) for x in inputs]
    drawn = [(noise.given[i].shape, noise.given[i].dtype) for kind, i in takes if kind == "noise"]
    key = repr((rest.code, takes, changes, fold.code, folds, forms, drawn, [*map(_bytes, constants)]))
    return StepGraph(rest, takes, changes, fold, folds, constants, drawn, key)


def _lifted(module: GraphModule) -> list[Tensor]:
    """Make inputs, the first ones, of the tensors that a graph holds; return these."""
    graph, found = module.graph, dict[int, tuple[Tensor, Node]]()
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        tensor = attrgetter(node.target)(module)
        if not isinstance(tensor, Tensor):
            raise NoGraph("it branches on what only tensors know")
        if id(tensor) not in found:
            with graph.inserting_before(first):
                found[id(tensor)] = tensor, graph.placeholder(f"held_{len(found)}")
        node.replace_all_uses_with(found[id(tensor)][1])
        graph.erase_node(node)
    module.recompile()
    return [tensor for tensor, _ in found.values()]


def _check(graph: Graph, tensors: dict[Node, Tensor], places: dict[Node, Place]) -> None:
    """See that nothing is drawn but what is given, and nothing changed but what may be.

    Raises
    ------
    NoGraph
        If not.
    """
    memory = [x.untyped_storage().data_ptr() for x in tensors.values()]
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NoGraph(f"it draws random numbers by `{node.target}`")
        if node.target is torch.ops.aten.copy_.default:
            if places[node.args[0]][0] not in ("input", "buffer"):
                raise NoGraph("it changes tensors that are not buffers")
            if memory.count(tensors[node.args[0]].untyped_storage().data_ptr()) > 1:
                raise NoGraph("it changes a buffer that shares its memory with another tensor")


def _apart(graph: Graph, places: dict[Node, Place], n_read: int) -> list[Place]:
    """Let what is read not be written, but something else; return where that is to be copied."""
    changes: list[Place] = []
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        kind, i = places[node.args[0]]
        if kind == "buffer" or i < n_read:
            with graph.inserting_before(next(iter(graph.nodes))):
                room = graph.placeholder(f"next_{len(changes)}")
            room.meta = node.args[0].meta
            places[room] = "next", len(changes)
            changes.append((kind, i))
            node.update_arg(0, room)
    return changes


def _split(graph: Graph, places: dict[Node, Place]) -> tuple[GraphModule, list[Place], GraphModule, list[int]]:
    """Take apart the work on parameters alone, and the rest. Mere views are no work."""
    parameters = {node: place for node, place in places.items() if place[0] == "parameter"}
    calls = [node for node in graph.nodes if node.op == "call_function"]
    fixed, work = set(parameters), list[Node]()
    for node in calls:
        if node.all_input_nodes and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
            if not _is_view(node):
                work.append(node)
    inputs = places | {node: ("folded", i) for i, node in enumerate(work)}
    inputs = dict(sorted(inputs.items(), key=lambda item: (item[1][0] == "noise", item[1])))
    rest, takes = _graph(inputs, [node for node in calls if node not in work], [])
    wanted = [i for kind, i in takes if kind == "folded"]
    takes = [(kind, wanted.index(i)) if kind == "folded" else (kind, i) for kind, i in takes]
    fold, folds = _graph(parameters, [node for node in calls if node in fixed], [work[i] for i in wanted])
    return rest, takes, fold, [i for _, i in folds]


def _is_view(node: Node) -> bool:
    returns = node.target._schema.returns if hasattr(node.target, "_schema") else ()
    return any(x.alias_info is not None and not x.alias_info.is_write for x in returns)


def _graph(inputs: dict[Node, Place], nodes: list[Node], outputs: list[Node]) -> tuple[GraphModule, list[Place]]:
    """Make a graph of some nodes, without what has no effect; return which of the inputs it takes."""
    graph = Graph()
    known = {node: graph.placeholder(f"x{i}") for i, node in enumerate(inputs)}
    for node in inputs:
        known[node].meta = node.meta
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[node] for node in outputs))
    graph.eliminate_dead_code()
    taken = [place for node, place in inputs.items() if known[node].users]
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:
            graph.erase_node(node)
    return GraphModule(torch.nn.Module(), graph), taken


_mm, _addmm = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def _written_out(product: Any) -> Callable[..., Any]:
    """Write a small product of matrices as a sum of products, which can be one with what comes before and after.

    The second matrix is read row by row: where it is a transposed parameter, that is worth a copy which is made once.
    """

    def mm(one: Tensor, other: Tensor) -> Any:
        if one.dtype != torch.float32 or one.shape[0] * other.numel() > _SMALL:
            return NotImplemented
        return (one.unsqueeze(-1) * other.contiguous()).sum(-2)

    def addmm(bias: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        out = mm(one, other) if beta == alpha == 1 else NotImplemented
        return out if out is NotImplemented else out + bias

    return mm if product is _mm else addmm


def _bytes(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


_OPTIONS: dict[str, Any] = {"size_asserts": False, "compile_threads": 1}
"""The engine has looked at shapes and dtypes itself, and wants no processes that stay."""


class Program:
    """A step, compiled."""

    def __init__(self, traced: StepGraph, weights: dict[str, list[Tensor]]) -> None:
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
