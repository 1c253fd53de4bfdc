"""Traces a step into a graph of tensor operations.

The graph takes as operands all tensors that the step reads, weights and noise included, and all that it writes. The
part that depends on the parameters alone is a graph of its own, which runs only when the weights change. Imports
neither actors nor compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ....dtypes import as_bytes
from ....process_state import compiling
from ..copying.shared_memory import address_of_storage
from .attribute_reads import Reads
from .draws import Draw, RecordedNoise
from .step_checks import NoGraph, draws_numbers

__all__ = ["StepGraph", "TracedStep", "make_graph"]

Operand = tuple[str, int]
"""Kind and number of a tensor: ``("parameter", 3)`` is the fourth parameter. See :attr:`StepGraph.operands`."""

_SMALL = 2**17
"""A matrix product with at most this many multiplications is faster as a fused sum than as a library call."""


class StepGraph(NamedTuple):
    """A step as a graph, and the operands to run it with."""

    graph: GraphModule
    """Takes a tensor for each of ``operands``, and returns nothing."""
    operands: list[Operand]
    """The kinds are ``parameter``, ``buffer``, ``constant``, ``input``, ``derived``, ``next_value`` and, at the end
    and in the order in which it is drawn, ``noise``."""
    updates: list[Operand]
    """The buffers and inputs that the step both reads and writes. The graph writes the new value of ``updates[i]`` to
    ``("next_value", i)``, which is to be copied afterwards: during the step, views may still read the old value."""
    derive: GraphModule
    """Takes the parameters with the numbers ``derived_from``; returns the ``derived`` tensors."""
    derived_from: list[int]
    constants: list[Tensor]
    draws: list[Draw]
    """All draws of the step. The noise operands are those of them that are used."""
    key: Any
    """Equal for graphs that do the same with the same constants."""


class TracedStep(NamedTuple):
    """The step as it was traced in some modes, with some values of plain attributes."""

    graphs: dict[tuple[int, bool], StepGraph]
    """By the width of the group, and whether the step is virtual; empty where the step is eager."""
    why_eager: str = ""
    reads: Reads = None
    """The plain attributes that it reads."""
    remembers: bool = False
    """Whether it is eager since it changes attributes, which a step in other modes may read."""

    @property
    def outcome(self) -> tuple[list[Any], str]:
        """Equal for steps that do the same."""
        return [graph.key for graph in self.graphs.values()], self.why_eager


def make_graph(
    step: Callable[..., None],
    inputs: Sequence[Tensor],
    n_read: int,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    noise: RecordedNoise,
) -> StepGraph:
    """Trace a step into a graph.

    Parameters
    ----------
    step : callable
        Takes ``inputs``, and writes its answers into some of them.
    n_read : int
        The first ``n_read`` inputs are read. The others are only written, in full.
    parameters, buffers : sequence of Tensor
        The other tensors that the step may read. It may change the buffers.
    noise : RecordedNoise
        It has recorded one run of the step. The traced run has to draw alike.

    Raises
    ------
    NoGraph
        If a graph could not do what the step does.
    Exception
        Raised by the step itself if it needs the values of tensors, which tracing does not have: data-dependent control
        flow, NumPy.
    """
    with compiling():
        from torch._inductor.decomposition import select_decomp_table
        from torch.fx.experimental.proxy_tensor import make_fx

        noise.rewind()
        raw = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        held = _held_tensors_as_inputs(raw)
        with torch.autocast("cpu", enabled=False):  # the casts are in the graph already
            pure = torch.func.functionalize(raw, remove="mutations")
            table = select_decomp_table() | {overload: _product_as_sum(overload) for overload in (_mm, _addmm)}
            graph = make_fx(pure, decomposition_table=table, tracing_mode="fake")(*held, *inputs).graph
    tensors = [*held, *inputs]
    kinds = {"parameter": parameters, "buffer": buffers, "noise": noise.tensors, "input": inputs}
    known = {id(x): (kind, i) for kind, members in kinds.items() for i, x in enumerate(members)}
    constants = [x for x in held if id(x) not in known]
    memory = {address_of_storage(x) for x in (*parameters, *buffers)} - {0}
    if any(address_of_storage(x) in memory for x in constants):
        raise NoGraph("it uses a view of a parameter or buffer that it keeps")
    known |= {id(x): ("constant", i) for i, x in enumerate(constants)}
    operand_of: dict[Node, Operand] = dict(
        zip(graph.find_nodes(op="placeholder"), (known[id(x)] for x in tensors), strict=True)
    )
    _check_draws_and_writes(graph, dict(zip(operand_of, tensors, strict=True)), operand_of)
    updates = _redirect_writes(graph, operand_of, n_read)
    main, operands, derive, derived_from = _split(graph, operand_of)
    input_forms = [(x.shape, x.stride(), x.dtype) for x in inputs]
    parts = (main.code, operands, updates, derive.code, derived_from, input_forms, noise.draws)
    key = repr((*parts, [*map(_contents, constants)]))
    return StepGraph(main, operands, updates, derive, derived_from, constants, list(noise.draws), key)


def _held_tensors_as_inputs(module: GraphModule) -> list[Tensor]:
    """Replace the tensors that a graph holds as attributes by inputs, before all others; return these tensors."""
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


def _check_draws_and_writes(graph: Graph, tensors: dict[Node, Tensor], operand_of: dict[Node, Operand]) -> None:
    """Check that a graph draws no random numbers, and writes only to inputs and buffers.

    Raises
    ------
    NoGraph
        If not.
    """
    addresses = [x.untyped_storage().data_ptr() for x in tensors.values()]
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and draws_numbers(node.target, node.args, node.kwargs):
            raise NoGraph(f"it draws random numbers by `{node.target}`")
        if node.target is torch.ops.aten.copy_.default:
            if operand_of[node.args[0]][0] not in ("input", "buffer"):
                raise NoGraph("it changes tensors that are not buffers")
            if addresses.count(tensors[node.args[0]].untyped_storage().data_ptr()) > 1:
                raise NoGraph("it changes a buffer that shares its memory with another tensor")


def _redirect_writes(graph: Graph, operand_of: dict[Node, Operand], n_read: int) -> list[Operand]:
    """Redirect writes to operands that are also read to new operands, of the kind ``next_value``; return the former."""
    updates: list[Operand] = []
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        kind, i = operand_of[node.args[0]]
        if kind == "buffer" or i < n_read:
            with graph.inserting_before(next(iter(graph.nodes))):
                target = graph.placeholder(f"next_{len(updates)}")
            target.meta = node.args[0].meta
            operand_of[target] = "next_value", len(updates)
            updates.append((kind, i))
            node.update_arg(0, target)
    return updates


def _split(graph: Graph, operand_of: dict[Node, Operand]) -> tuple[GraphModule, list[Operand], GraphModule, list[int]]:
    """Split off what depends on parameters alone. Views stay in the main graph as well, since they cost nothing.

    Returns
    -------
    main : GraphModule
    operands : list of Operand
    derive : GraphModule
        Computes the operands of ``main`` that are of the kind ``derived``.
    derived_from : list of int
        The numbers of the parameters that ``derive`` takes.
    """
    parameters = {node: operand for node, operand in operand_of.items() if operand[0] == "parameter"}
    calls = [node for node in graph.nodes if node.op == "call_function"]
    of_parameters, candidates = set(parameters), list[Node]()
    for node in calls:
        if node.all_input_nodes and of_parameters.issuperset(node.all_input_nodes):
            of_parameters.add(node)
            if not _is_view(node):
                candidates.append(node)
    inputs = operand_of | {node: ("derived", i) for i, node in enumerate(candidates)}
    inputs = dict(sorted(inputs.items(), key=lambda item: (item[1][0] == "noise", item[1])))
    main, operands = _subgraph(inputs, [node for node in calls if node not in candidates], [])
    used = [i for kind, i in operands if kind == "derived"]
    operands = [(kind, used.index(i)) if kind == "derived" else (kind, i) for kind, i in operands]
    derive, taken = _subgraph(
        parameters, [node for node in calls if node in of_parameters], [candidates[i] for i in used]
    )
    return main, operands, derive, [i for _, i in taken]


def _is_view(node: Node) -> bool:
    returns = node.target._schema.returns if hasattr(node.target, "_schema") else ()
    return any(x.alias_info is not None and not x.alias_info.is_write for x in returns)


def _subgraph(inputs: dict[Node, Operand], nodes: list[Node], outputs: list[Node]) -> tuple[GraphModule, list[Operand]]:
    """Make a graph of some nodes, without those that have no effect; return also the operands that the graph takes."""
    graph = Graph()
    known = {node: graph.placeholder(f"x{i}") for i, node in enumerate(inputs)}
    for node in inputs:
        known[node].meta = node.meta
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[node] for node in outputs))
    graph.eliminate_dead_code()
    taken = [operand for node, operand in inputs.items() if known[node].users]
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:
            graph.erase_node(node)
    return GraphModule(torch.nn.Module(), graph), taken


_mm, _addmm = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def _product_as_sum(product: Any) -> Callable[..., Any]:
    """Return a decomposition of small matrix products into sums of products, which Inductor can fuse.

    The sum reads the second matrix row by row, so a transposed parameter is copied, once, as derived work.
    """

    def mm(one: Tensor, other: Tensor) -> Any:
        if one.dtype != torch.float32 or one.shape[0] * other.numel() > _SMALL:
            return NotImplemented
        return (one.unsqueeze(-1) * other.contiguous()).sum(-2)

    def addmm(bias: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        out = mm(one, other) if beta == alpha == 1 else NotImplemented
        return out if out is NotImplemented else out + bias

    return mm if product is _mm else addmm


def _contents(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, as_bytes(x).numpy().tobytes()
