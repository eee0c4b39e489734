"""Looks at every node of a model: sizes, products, memory, energy, training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.macs import OpenShape
from onnx_lathe.optimizer.counting.weights import Stored, leaves
from onnx_lathe.optimizer.inspect import Counted, CountedNode, count_nodes, named
from onnx_lathe.optimizer.inspecting import values
from onnx_lathe.optimizer.inspecting.energy import NAMES, energy_of
from onnx_lathe.optimizer.inspecting.memory import Key, Memory
from onnx_lathe.optimizer.inspecting.products import gemm_of, winograd_of
from onnx_lathe.optimizer.inspecting.rows import Energy, Inspection, Row, Training, Whole
from onnx_lathe.optimizer.inspecting.sizes import check_batch, sizes_of
from onnx_lathe.optimizer.inspecting.training import STATES, Kept, training_of
from onnx_lathe.passes.graph.layers import UNFOLDED, is_constant, is_integer
from onnx_lathe.passes.graph.skeleton import runtime_inputs
from onnx_lathe.runtime.files.tensors import bits_of

INPUT = "Input"
"""Operator of the rows of the model's inputs."""
FOLD = "the pass fold computes many of them: optimize MODEL --passes fold"
OPEN = "a size is not known before the model runs"


@dataclass(frozen=True)
class Question:
    """What a user asks. `weights`: count different values, however many weights there are. `optimizer`: of training."""

    shapes: Mapping[str, Sequence[int]]
    batch: int | None = None
    weights: bool = False
    training: bool = False
    optimizer: str = "adam"


class Analysis:
    """Everything that can be said of a model without running it."""

    def __init__(self, model: onnx.ModelProto, question: Question) -> None:
        """Raises UsageError for sizes that the model does not take."""
        check_batch(question.batch)
        if not isinstance(question.optimizer, str):
            raise UsageError(f"optimizer takes a name, not {type(question.optimizer).__name__}")
        if question.optimizer not in STATES:
            raise UsageError(
                f"--optimizer: there is no '{question.optimizer}'{nearest(question.optimizer, STATES)}"
            )
        sizes = sizes_of(model, question.shapes, question.batch)
        self.question, self.samples = question, sizes.samples
        self.batch = sizes.count
        self.counted: Counted = count_nodes(model, sizes.given, sizes.batch)
        self.model = model
        self._unpriced: dict[str, str] = {}
        """Node -> why its arithmetic has no energy, where its sizes are known."""
        fed = [value.name for value in runtime_inputs(model)]
        self.memory = Memory(self.counted.nodes, self.counted.main, fed, sizes.samples)
        self.kept = Kept(self.counted.nodes, self.memory) if question.training else None
        matrices = sum(one.row.weights for one in self.counted.nodes)
        self.sorts = question.weights or matrices <= values.CHEAP

    @property
    def main_nodes(self) -> list[str]:
        """Names of the nodes of the main graph."""
        return [str(node.node.name) for node in self.counted.nodes if node.scope is self.counted.main]

    @property
    def input_shapes(self) -> dict[str, OpenShape]:
        shapes = self.counted.main.shapes
        return {key.name: shapes[key.name] for key in self.memory.inputs if key.name in shapes}

    def inspection(self) -> Inspection:
        """A row for each input and each node, bodies behind the others; constants have none."""
        fed = [self._input(key) for key in self.memory.inputs]
        nodes = [node for node in self.counted.nodes if not _is_stored(node)]
        rows = [self._row(node) for node in nodes]
        counted = [row for node, row in zip(nodes, rows, strict=True) if self.counted.counts(node.scope)]
        return Inspection([*fed, *rows], self._whole([*fed, *rows], [*fed, *counted]))

    def _input(self, key: Key) -> Row:
        kept = None if self.kept is None else self.kept.of_input(key)
        shape = self.counted.main.shapes.get(key.name)
        elements = self.memory.elements(key)
        return Row(
            key.name, INPUT, (), shape, 0, 0, 0, 0, 0,
            activations=elements,
            activation_bytes=self.memory.own_bytes(key),
            energy=Energy(0.0, 0.0, 0.0),
            training=None if kept is None else Training(0, kept, 0, 0),
        )  # fmt: skip

    def _row(self, node: CountedNode) -> Row:
        base, memory = node.row, self.memory
        made = memory.made_by(node)
        own = [key for key in made if key not in memory.shares and key not in memory.of_shapes]
        held = _total([memory.held_bytes(key) for key in own])
        read = _total([memory.held_bytes(key) for key in self._read_by(node)])
        taken = bool(made) and not own
        macs = None if base.macs is None else base.macs * self.samples
        gemm, copies = gemm_of(node.proto, node.scope.shapes)
        weights = self.samples * sum(one.read_bytes for one in node.weights)  # read anew for each call
        moved = _moved(node, weights, read, held)
        kind = self._kind(node)
        energy = _energy(node, taken, macs, moved, NAMES.get(kind))
        if energy is None and macs is not None and moved is not None:
            name = TensorProto.DataType.Name(kind).lower() if kind else "its types"
            self._unpriced[base.node] = f"the table has no figure for products of {name}"
        kept = None if self.kept is None else self.kept.bytes_of(node, made)
        largest = max((one for one in node.weights if one.matrix), key=lambda one: one.elements, default=None)
        counts = {
            name: count * self.samples * (node.steps if isinstance(node.steps, int) else 1)
            for name, count in winograd_of(node.node, node.proto, node.scope.shapes, macs).items()
        }
        return Row(
            **{**vars(base), "macs": macs},
            counts=node.counts,
            activations=_total([memory.elements(key) for key in own]),
            activation_bytes=held,
            input_bytes=read,
            memory_of=self._owner(made[0]) if taken and made[0] in memory.shares else "",
            of_shapes=bool(made) and all(key in memory.of_shapes for key in made),
            bits=None if largest is None else values.bits(largest),
            distinct=self._distinct(largest),
            intensity=macs / moved if macs and moved else None,
            gemm=None if gemm is None else replace(gemm, n=gemm.n * self.samples),
            redundancy=copies,
            winograd=counts,
            energy=energy,
            training=training_of(node, kept, self.question.optimizer),
        )

    def _read_by(self, node: CountedNode) -> list[Key]:
        """What it reads of activations, each piece of memory once."""
        memory = self.memory
        read = [key for key in memory.read_by(node) if key not in memory.of_shapes]
        return list({memory.root(key): key for key in read}.values())

    def _owner(self, key: Key) -> str:
        root = self.memory.root(key)
        maker = self.memory.makers.get(root)
        return root.name if maker is None else str(maker.node.name)

    def _distinct(self, largest: Stored | None) -> int | None:
        if largest is None or not largest.elements:
            return None
        return (
            values.distinct(largest, self.counted.opset) if self.sorts or values.is_quick(largest) else None
        )

    def _kind(self, node: CountedNode) -> int:
        """The element type of what the node multiplies, the wider of two: of Q/DQ pairs what is quantized."""
        if is_integer(node.node):
            return TensorProto.INT8
        decoded = [self._decoded(node, place) for place in range(2)]
        if all(decoded):
            return max(decoded, key=lambda kind: bits_of(kind) or 0)
        results = [Key(node.scope.number, name) for name in node.proto.output if name]
        return self.memory.type(results[0]) if results else 0

    def _decoded(self, node: CountedNode, place: int) -> int:
        """The element type of what a DequantizeLinear makes the input of; 0 if none does."""
        if place >= len(node.proto.input):
            return 0
        read = self.memory.find(node.scope, node.proto.input[place])
        maker = None if read is None else self.memory.makers.get(self.memory.view_root(read))
        if maker is not None:
            dequantizes = maker.proto.op_type == "DequantizeLinear"
            return maker.scope.types.get(maker.proto.input[0], 0) if dequantizes else 0
        stored = node.node.inputs[place]
        if not stored.inputs or stored.inputs[0].op != "DequantizeLinear":
            return 0
        return values.kind(leaves(stored))

    def _whole(self, rows: Sequence[Row], counted: Sequence[Row]) -> Whole:
        """`counted`: the rows whose MACs the total has, which are those of one branch of each If."""
        size = self.counted.size
        uncounted = dict(size.uncounted)
        for metric, missing in (
            ("activations", [row for row in rows if row.activations is None]),
            ("energies", [row for row in rows if row.energy is None]),
        ):
            if missing:
                reasons = [(f"{row.node} ({row.op})", self._reason(row)) for row in missing]
                uncounted[metric] = uncounted.get("activations", f"{metric} of {named(reasons)}")
        training = [row.training for row in rows if row.training is not None]
        if self.kept is not None and len(training) < len(rows):
            unknown = [(f"{row.node} ({row.op})", OPEN) for row in rows if row.training is None]
            uncounted["training"] = f"bytes of training of {named(unknown)}"
        if self.kept is not None and self.kept.unsized:
            unknown = [(f"{name} ({op})", OPEN) for name, op in self.kept.unsized]
            uncounted["gradient_peak"] = f"gradients of activations of {named(unknown)}"
            uncounted.setdefault("training", uncounted["gradient_peak"])
        return Whole(
            **{
                **vars(size),
                "uncounted": uncounted,
                "macs": None if size.macs is None else size.macs * self.samples,
            },
            weights=sum(row.weights for row in rows),
            activations=sum(row.activations or 0 for row in rows),
            activation_bytes=sum(row.activation_bytes or 0 for row in rows),
            batch=self.batch,
            energy=_sum_energy([row.energy for row in counted if row.energy is not None]),
            winograd=_winograd(counted),
            training=_sum_training(training) if self.kept is not None else None,
            gradient_peak_bytes=None if self.kept is None else self.kept.peak,
            operators=Counter(node.proto.op_type for node in self.counted.nodes if not _is_stored(node)),
            notes=self._notes(rows),
        )

    def _reason(self, row: Row) -> str:
        return row.uncounted or self._unpriced.get(row.node, OPEN)

    def _notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        found = []
        if open_inputs := self.open_inputs():
            found.append(
                f"sizes that the model leaves open: {', '.join(open_inputs)}; give them with --shape"
            )
        elif any(row.activations is None for row in rows):
            found.append(f"sizes that follow from values inside the model are not known here; {FOLD}")
        if self.samples > 1:
            found.append(
                f"the model takes one sample at a time: MACs, activations and energy are {self.samples} times those of one"
            )
        if any(row.zeros is None for row in rows):
            found.append(
                "weights in another file were not read: zeros and different values are counted with --weights"
            )
        elif any(row.distinct is None and row.weights for row in rows) and not self.sorts:
            found.append(
                f"different values are counted unasked up to {values.CHEAP:,} weights: --weights counts them"
            )
        if self.kept is not None and self.kept.assumed:
            ops = ", ".join(sorted(self.kept.assumed))
            found.append(f"training: of {ops} it is assumed that the backward pass reads their inputs")
        return tuple(found)

    def open_inputs(self) -> list[str]:
        """NAME=sizes of inputs some of whose sizes are not known."""
        return [
            f"{name}={'x'.join(map(str, shape))}"
            for name, shape in self.input_shapes.items()
            if not all(isinstance(size, int) for size in shape)
        ]


def _is_stored(node: CountedNode) -> bool:
    """Whether the node only decodes what is stored."""
    return bool(node.node.outputs) and is_constant(node.node.outputs[0], UNFOLDED)


def _total(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _moved(node: CountedNode, weights: int, read: int | None, held: int | None) -> int | None:
    if read is None or held is None or not isinstance(node.steps, int):
        return None
    return (weights + read + held) * node.steps


def _energy(
    node: CountedNode, taken: bool, macs: int | None, moved: int | None, kind: str | None
) -> Energy | None:
    if taken and not macs:
        return Energy(0.0, 0.0, 0.0)  # it is done where its input is made
    return None if macs is None or moved is None else energy_of(macs, kind, moved)


def _sum_energy(found: Sequence[Energy]) -> Energy:
    return Energy(
        sum(one.arithmetic for one in found), sum(one.dram for one in found), sum(one.sram for one in found)
    )


def _sum_training(found: Sequence[Training]) -> Training:
    return Training(
        sum(one.weights for one in found),
        sum(one.kept for one in found),
        sum(one.gradients for one in found),
        sum(one.optimizer for one in found),
    )


def _winograd(rows: Sequence[Row]) -> dict[str, int]:
    names = dict.fromkeys(name for row in rows for name in row.winograd)
    return {name: sum(row.winograd.get(name, row.macs or 0) for row in rows) for name in names}
