"""Per-layer table of a model: shape, parameters, multiply-accumulates (MACs), and the bytes that its
weights take in the file.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import onnx
from onnx import inliner

from onnx_lathe.macs import OpenShape, macs_of
from onnx_lathe.optimizer.counting.scopes import Scope, scopes, trips
from onnx_lathe.optimizer.counting.weights import Stored, stored_weights
from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.graph.bodies import Part
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.runtime.files.tensors import all_tensors, data_size

SHOWN = 3
"""How many nodes a line names."""
UNREAD = "its weights are in another file, which was not read"


@dataclass(frozen=True)
class LayerRow:
    """One node with weights or MACs. `macs` is per sample and of all steps of the loops around it; None where it
    cannot be counted, and `uncounted` says why. `place` is the body that it is in, such as "then_branch of If_3".
    """

    node: str
    op: str
    weight_shape: OpenShape
    output_shape: OpenShape | None
    parameters: int
    weights: int
    """Parameters but those in vectors, such as biases; `zeros` is of these."""
    zeros: int | None
    """None where weights are in another file that was not read."""
    weight_bytes: int
    macs: int | None
    place: str = ""
    uncounted: str = ""


@dataclass(frozen=True)
class Size:
    """What a model weighs, without running it. `uncounted`: metric -> what it leaves out, in one line; such a
    metric cannot be judged.
    """

    parameters: int
    weight_bytes: int
    sparsity: float
    macs: int | None
    uncounted: Mapping[str, str] = field(default_factory=dict)

    def as_metrics(self) -> dict[str, float]:
        """What is known for certain."""
        found: dict[str, float | None] = {
            "weights": self.weight_bytes,
            "sparsity": self.sparsity,
            "parameters": self.parameters,
            "macs": self.macs,
        }
        return {
            name: value for name, value in found.items() if value is not None and name not in self.uncounted
        }


@dataclass(frozen=True)
class Table:
    """The rows of a model, and what they add up to. Of an If, the branch with more MACs counts."""

    rows: Sequence[LayerRow]
    size: Size


@dataclass(frozen=True)
class CountedNode:
    """A node, as passes see it and as it is written, with its row; `weights` is what it reads of them. `counts`: it has
    weights or MACs. `steps`: how often it runs, or why that is not known.
    """

    node: Node
    proto: onnx.NodeProto
    scope: Scope
    weights: Sequence[Stored]
    row: LayerRow
    counts: bool
    steps: int | str


@dataclass(frozen=True)
class Counted:
    """All nodes, of bodies too, and what they add up to. `main` is the scope of the main graph. `left_out`: numbers of
    the scopes of branches of an If with fewer MACs than another.
    """

    nodes: Sequence[CountedNode]
    size: Size
    main: Scope
    opset: int
    left_out: Set[int]

    def counts(self, scope: Scope | None) -> bool:
        """Whether the totals have the MACs of the scope."""
        while scope is not None and scope.number not in self.left_out:
            scope = scope.outer
        return scope is None


def layer_table(model: onnx.ModelProto) -> Table:
    """A row per node with weights or MACs, those inside bodies of If, Loop and Scan behind the others; a shared
    weight is counted in its first row only.
    """
    found = count_nodes(model)
    return Table([one.row for one in found.nodes if one.counts], found.size)


def count_nodes(
    model: onnx.ModelProto, sizes: Mapping[str, OpenShape] | None = None, batch: int = 1
) -> Counted:
    """`sizes` of inputs, by name; of others `batch` where their first axis is open."""
    model = _without_functions(model)
    lost: list[tuple[str, str]] = []
    graph = import_model(model)
    scoped = scopes(model, sizes, batch)
    nodes = iter([(scope, proto) for scope in scoped for proto in scope.graph.node])
    counted = _Macs()
    rows: list[CountedNode] = []
    read = stored_weights(graph, lambda node, reason: lost.append((f"{node.name} ({node.op})", reason)))
    for part, node, found in read:
        scope, proto = next(nodes)
        macs = macs_of(proto, scope.shapes)
        counted.add(scope, node, proto, macs)
        row = _row(part, node, found, scope, proto, macs)
        counts = bool(found) or macs is not None
        rows.append(CountedNode(node, proto, scope, found, row, counts, _steps(scope)))
    size = _size(model, [one.row for one in rows], counted.total(scoped[0]), counted.reasons, lost)
    return Counted(rows, size, scoped[0], graph.opset, counted.left_out)


def _row(
    part: Part,
    node: Node,
    found: Sequence[Stored],
    scope: Scope,
    proto: onnx.NodeProto,
    macs: int | str | None,
) -> LayerRow:
    times = _steps(scope)
    reason = macs if isinstance(macs, str) else times if isinstance(times, str) and macs else ""
    known = macs * times if isinstance(macs, int) and isinstance(times, int) else 0
    return LayerRow(
        node.name,
        node.op,
        max((one.shape for one in found), key=len, default=()),
        next((scope.shapes.get(name) for name in proto.output if name), None),
        sum(one.elements for one in found),
        sum(one.elements for one in found if one.matrix),
        _sum([one.zeros for one in found if one.matrix]),
        sum(one.size_bytes for one in found),
        None if reason else known,
        part.place,
        reason,
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _steps(scope: Scope) -> int | str:
    """How often the nodes of a scope run, or why that is not known; each branch of an If once."""
    if scope.outer is None or scope.node is None:
        return 1
    around = _steps(scope.outer)
    own = trips(scope.node, scope.outer) if scope.node.op_type in ("Loop", "Scan") else 1
    if isinstance(around, str) or isinstance(own, str):
        return around if isinstance(around, str) else own
    return around * own


class _Macs:
    """Adds up MACs by scope. `reasons`: the nodes whose MACs cannot be counted, and why. `left_out`: see Counted."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, str]] = []
        self.left_out: set[int] = set()
        self._own: dict[int, int | None] = {}
        self._inner: dict[int, list[tuple[str, onnx.NodeProto, Scope]]] = {}

    def add(self, scope: Scope, node: Node, proto: onnx.NodeProto, macs: int | str | None) -> None:
        if isinstance(macs, str):
            self.reasons.append((f"{node.name} ({node.op})", macs))
            self._own[id(scope)] = None
        elif (so_far := self._own.get(id(scope), 0)) is not None:
            self._own[id(scope)] = so_far + (macs or 0)
        for body in scope.bodies:
            if body.node is proto:
                self._inner.setdefault(id(scope), []).append((node.name, proto, body))

    def total(self, scope: Scope) -> int | None:
        """MACs of one run of the scope; None if a part cannot be counted."""
        parts: dict[str, list[tuple[Scope, int | None]]] = {}
        for name, node, body in self._inner.get(id(scope), []):
            inside = self.total(body)
            if node.op_type in ("Loop", "Scan") and inside:
                times = trips(node, scope)
                if isinstance(times, str):
                    self.reasons.append((f"{name} ({node.op_type})", times))
                inside = None if isinstance(times, str) else inside * times
            parts.setdefault(name, []).append((body, inside))
        known = [self._own.get(id(scope), 0)]
        for branches in parts.values():
            sizes = [macs for _, macs in branches if macs is not None]
            known.append(max(sizes) if len(sizes) == len(branches) else None)
            taken, _ = max(branches, key=lambda branch: branch[1] or 0)
            self.left_out |= {body.number for body, _ in branches if body is not taken}
        return None if None in known else sum(one for one in known if one is not None)


def _size(
    model: onnx.ModelProto,
    rows: Sequence[LayerRow],
    macs: int | None,
    unknown: Sequence[tuple[str, str]],
    lost: Sequence[tuple[str, str]],
) -> Size:
    """Parameters are all float values that nodes read; weight bytes are all tensors as stored; sparsity is the
    share of zeros of the parameters but those in vectors.
    """
    parameters = sum(row.parameters for row in rows)
    weights = sum(row.weights for row in rows)
    uncounted = {"macs": f"MACs of {named(unknown)}"} if unknown else {}
    unread = [row for row in rows if row.zeros is None]
    if unread:
        uncounted["sparsity"] = f"zeros of {named([(f'{row.node} ({row.op})', UNREAD) for row in unread])}"
    if lost:
        uncounted |= dict.fromkeys(("sparsity", "parameters"), f"weights of {named(lost)}")
    return Size(
        parameters=parameters,
        weight_bytes=sum(map(data_size, _numbers(model))),
        sparsity=sum(row.zeros or 0 for row in rows) / weights if weights else 0.0,
        macs=macs,
        uncounted=uncounted,
    )


def named(nodes: Sequence[tuple[str, str]]) -> str:
    """The first nodes, and why they are not counted."""
    name, reason = nodes[0]
    others = [other for other, _ in nodes[1:SHOWN]] + [f"{len(nodes) - SHOWN} more"] * (len(nodes) > SHOWN)
    return f"{name} are not counted: {reason}" + (f"; nor those of {', '.join(others)}" if others else "")


def _numbers(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in all_tensors(model) if tensor.data_type != onnx.TensorProto.STRING)


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    return inliner.inline_local_functions(model) if model.functions else model


def measure(model: onnx.ModelProto) -> Size:
    """What `layer_table` adds up to."""
    return layer_table(model).size
