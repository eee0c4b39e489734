"""Constant folding, batch normalization into weights, and removal of what does nothing.

    Shape -> Gather -> Concat of constants         becomes  an initializer
    If(constant), inside bodies too                becomes  the body that runs, see passes/graph/branches.py
    v / ReduceL2(v) * g of constants               becomes  the weight that it is
    Conv(W, b) -> BatchNormalization | Mul | Add   becomes  Conv(W', b'), see passes/fold/affine.py
    x -> Pad(0) -> Conv | AveragePool | MaxPool    becomes  the layer with more padding, see passes/fold/pads.py
    x -> Identity | Dropout | Reshape to the same  becomes  x
    Transpose -> Relu, Add(c), ... -> Transpose    becomes  Relu, Add(c'), ..., see passes/fold/transposes.py
    Max(x, c), Min(x, c) of one number c           becomes  Clip, see passes/fold/bounds.py
    ReduceMean of an image                         becomes  GlobalAveragePool, see passes/fold/means.py
    y * Clip(x + 3, 0, 6) / 6                      becomes  y * HardSigmoid(x), see passes/graph/gates.py

Compressed storage stays as it is: a Cast that widens stored weights, a ConstantOfShape, DequantizeLinear,
and all that follows them. Whatever is not touched keeps its bits.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold import affine, bounds, means, noops, pads, transposes
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, constants, rewire
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.gates import fuse_hard_sigmoid
from onnx_lathe.passes.graph.model import sparse_tensors, taken_names, unused_name
from onnx_lathe.passes.graph.shapes import TensorType, infer_types


@register
class Fold(Pass):
    """Folds constants and batch normalization, and removes what does nothing."""

    name = "fold"
    streams = True
    lossless = True
    # rounding in another order: ONNX Runtime's own folding moves the outputs of a text recognizer by 7e-5
    tolerance = 5e-4

    @dataclass(frozen=True)
    class Config:
        growth: int = option(65536, "most that computing one node may add to the file", unit="bytes", low=0)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        run = _Run(graph, self.config.growth, context)
        run.to_fixed_point()
        done: dict[int, Graph] = {}
        while left := [part.graph for part in parts(graph)[1:] if id(part.graph) not in done]:
            run.inside(left[0])  # which may take bodies out of it
            done[id(left[0])] = left[0]
        kept = {node.name for part in parts(graph) for node in part.graph.nodes}
        for name, reason in run.refused.items():
            if name in kept:
                run.report.skip(name, reason)
        return run.report


class _Run:
    """One run over one graph: the rounds, and what they share."""

    def __init__(self, graph: Graph, growth: int, context: Context) -> None:
        self.graph = self.whole = graph
        self.growth = growth
        self.evaluator, self.spared = context.evaluator, context.spared
        self.report = PassReport()
        self.refused: dict[str, str] = {}
        self._look_at_bodies()
        self.types: Mapping[str, TensorType] = {}
        self.sparse: Collection[str] = ()
        self._taken: set[str] | None = None

    def _free_name(self, wanted: str) -> str:
        """For a bias. Names are gone through once for all: what else folding names ends otherwise."""
        if self._taken is None:
            self._taken = taken_names(self.whole)
        name = unused_name(wanted, self._taken)
        self._taken.add(name)
        return name

    def _look_at_bodies(self) -> None:
        self.captured = rewire.captured_names(self.graph)
        spared = [node for node in self.graph.nodes if node.name in self.spared]
        self.kept = self.captured | {tensor.name for node in spared for tensor in node.outputs}

    def to_fixed_point(self) -> None:
        self._store_constants()
        changed = True
        while changed:
            for name in rewire.sweep(self.graph):
                self.report.edit(name, "removed: no output of the model needs it")
            nodes = list(self.graph.nodes)
            self.types = infer_types(self.graph) if any(map(self._needs_types, nodes)) else {}
            self.sparse = sparse_tensors(self.graph)
            # Gates first: merged into the layer in front, the addition of a gate could not be told any more.
            gates = [node for node in nodes if node.name not in self.spared and self._fuse(node)]
            cancelled = transposes.cancel(self.graph, self.captured, self.spared)
            for name in cancelled:
                self.report.edit(name, "cancelled by another Transpose")
            nodes = list(self.graph.nodes)
            changed = sum(
                step(node)
                for node in nodes
                if node.name not in self.spared
                for step in (self._remove, self._compute, self._merge, self._pad, self._rename)
            ) > 0 or bool(gates or cancelled)
            changed = self._take_branches() or changed

    def inside(self, body: Graph) -> None:
        """Constants and batch normalization inside a body of If, Loop or Scan. What needs shapes, or renames what
        the body reads of the graph around, stays.
        """
        self.graph, self.types, self.sparse = body, {}, sparse_tensors(self.whole)
        self.captured = rewire.captured_names(body)
        self._store_constants()
        while self._take_branches():
            pass
        while sum(
            step(node)
            for node in list(body.nodes)
            if node.name not in self.spared
            for step in (self._compute, self._merge)
        ):
            pass
        body.nodes = [node for node in body.nodes if node.outputs]

    def _store_constants(self) -> None:
        for node in self.graph.nodes:
            if node.op == "Constant" and not self._pinned(node) and constants.constant_to_initializer(node):
                self.report.edit(node.name, "became an initializer")

    def _take_branches(self) -> bool:
        """Puts the body that always runs in the place of an If on a constant."""
        branches = [node for node in self.graph.nodes if node.op == "If" and not node.domain]
        kept = {node.inputs[0].name for node in branches if node.name in self.spared}
        conditions = {node.inputs[0].name: constants.value(node.inputs[0]) for node in branches}
        known = {
            name: bool(value.item())
            for name, value in conditions.items()
            if value is not None and name not in kept
        }
        if known:
            take_branches(self.graph, known, self.report)
            self._look_at_bodies()
            self._store_constants()
        return bool(known)

    def _needs_types(self, node: Node) -> bool:
        return node.op in noops.NEEDS_TYPES or node.op in ("Shape", "Size") or self._is_foldable(node)

    def _is_foldable(self, node: Node, sparse: Collection[str] = ()) -> bool:
        return constants.is_foldable(self.graph, node, sparse, self.evaluator is not None)

    def _pinned(self, node: Node) -> str | None:
        """Why the node's outputs cannot become initializers."""
        if any(rewire.is_output(self.graph, tensor) for tensor in node.outputs):
            return "it computes an output of the model"
        return (
            "a subgraph reads its output"
            if any(tensor.name in self.captured for tensor in node.outputs)
            else None
        )

    def _fuse(self, node: Node) -> bool:
        """Writes the gate that ends at the node as HardSigmoid."""
        found = fuse_hard_sigmoid(self.graph, node, self.kept, self._rank) if node.outputs else None
        if found is not None:
            self.report.edit(found.name, "became a HardSigmoid, with the addition and the division around it")
        return found is not None

    def _type(self, tensor: Tensor) -> TensorType | None:
        self.types = self.types or infer_types(self.graph)
        return self.types.get(tensor.name)

    def _rank(self, tensor: Tensor) -> int | None:
        known = self._type(tensor)
        return None if known is None or known.shape is None else len(known.shape)

    def _remove(self, node: Node) -> bool:
        """Takes out a node that returns its input."""
        done = noops.is_noop(self.graph, node, self.types) and rewire.bypass(self.graph, node, self.captured)
        if done:
            self.report.edit(node.name, "removed: it returns its input")
        return done

    def _compute(self, node: Node) -> bool:
        """Computes a node of constants, or the Shape of a tensor whose shape is known."""
        if not node.outputs or node.name in self.refused:
            return False
        known = self._known_shape(node)
        if known is None and not self._is_foldable(node, self.sparse):
            return False
        values: list[np.ndarray] | str = (
            self._pinned(node) or self._too_big(node, self._expected_bytes(node)) or []
        )
        if not values:
            values = (
                [known] if known is not None else constants.compute(node, self.graph.opset, self.evaluator)
            )
        if not isinstance(values, str):
            values = self._too_big(node, sum(value.nbytes for value in values)) or values
        if isinstance(values, str):
            self.refused[node.name] = values
            return False
        constants.store(node, values)
        self.report.edit(
            node.name, "computed: " + ", ".join(f"{value.dtype} {list(value.shape)}" for value in values)
        )
        return True

    def _known_shape(self, node: Node) -> np.ndarray | None:
        """The sizes that a Shape gives, or a Gather picks from one, or what a Size gives, where inference knows them."""
        if node.domain or not node.inputs:
            return None
        if node.op == "Size":
            known = self.types.get(node.inputs[0].name)
            count = None if known is None else known.size
            return None if count is None else np.array(count, np.int64)
        if node.op == "Gather" and isinstance(node.inputs[1], Constant) and node.inputs[0].inputs:
            sizes = self._sizes(node.inputs[0].inputs[0])
            places = node.inputs[1].values
            if sizes is None or (
                places.size and not -len(sizes) <= places.min() <= places.max() < len(sizes)
            ):
                return None
            picked = [sizes[place] for place in places.reshape(-1)]
        else:
            sizes = self._sizes(node)
            if sizes is None:
                return None
            picked, places = sizes, np.empty(len(sizes))
        if not all(isinstance(size, int) for size in picked):
            return None
        return np.array(picked, np.int64).reshape(places.shape)

    def _sizes(self, node: Node) -> list[int | str | None] | None:
        """What a Shape gives; a dimension without a number is a name or None."""
        known = self.types.get(node.inputs[0].name) if node.op == "Shape" and not node.domain else None
        if known is None or known.shape is None:
            return None
        return list(known.shape)[node.attrs.get("start", 0) : node.attrs.get("end")]

    def _expected_bytes(self, node: Node) -> int:
        """Size of the outputs as far as shape inference knows it: a lower bound, so that nothing big is
        computed in vain.
        """
        known = [self.types[tensor.name].size_bytes for tensor in node.outputs if tensor.name in self.types]
        return sum(size for size in known if size is not None)

    def _too_big(self, node: Node, size: int) -> str | None:
        growth = size - constants.freed_bytes(self.graph, node)
        return (
            None
            if growth <= self.growth
            else f"computed, it would add {growth:,} bytes to the file; growth={growth} allows that"
        )

    def _merge(self, node: Node) -> bool:
        """Folds a per-channel scale and shift into the layer in front of it."""
        normalization = node.op == "BatchNormalization"
        if (
            node.domain
            or not node.outputs
            or not (normalization or (node.op in affine.ELEMENTWISE and self.graph.opset >= 7))
        ):
            return False
        data = next(
            (t for t in node.inputs[: 1 if normalization else 2] if not isinstance(t, Constant)), None
        )
        layer = data.inputs[0] if data is not None and len(data.inputs) == 1 else None
        reason: str | None = "its input is not the output of a Conv, ConvTranspose or Gemm"
        if layer is not None and layer.name in self.spared:
            return False
        if layer is not None and layer.op in affine.FOLDS_INTO and not layer.domain:
            reason = affine.merge(self.graph, layer, node, self.whole, self._free_name)
            if reason is None:
                self.refused.pop(node.name, None)
                self.report.edit(layer.name, f"{node.op} {node.name} folded into weight and bias")
        if reason is not None and normalization:
            self.refused[node.name] = reason
        return reason is None

    def _pad(self, node: Node) -> bool:
        """Folds a Pad into the layers behind it."""
        if node.outputs and transposes.hoist(self.graph, node, self.captured):
            self.report.edit(node.name, "moved behind its Transpose")
            return True
        if not pads.is_foldable(self.graph, node) or node.outputs[0].name in self.captured:
            return False
        changed = False
        for layer in [one for one in node.outputs[0].outputs if one.op in pads.LAYERS and not one.domain]:
            reason = pads.merge(self.graph, node, layer)
            if reason is None:
                self.report.edit(layer.name, f"Pad {node.name} folded into its padding")
                changed = True
            else:
                self.refused[node.name] = reason
        return changed

    def _rename(self, node: Node) -> bool:
        """Writes a bound as a Clip, and the mean of an image as a GlobalAveragePool."""
        done = bool(node.outputs) and (
            bounds.write_clip(self.graph, node, self._rank) or means.write_pool(self.graph, node, self._type)
        )
        if done:
            self.report.edit(node.name, f"became a {node.op}")
        return done
