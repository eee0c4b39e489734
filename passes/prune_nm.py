"""N:M pruning, such as 2:4: of every M neighbouring inputs of an output, the N largest weights stay.

    Conv [O, I, ...] along I; Gemm and MatMul along the rows that are summed over.

`lathe.sparse` names the weight with its pattern.

Exactly the weights that sparse tensor cores skip are zero, so that TensorRT may choose its sparse kernels
(flag SPARSE_WEIGHTS).
With score=obs they are those that the layer's answers on calibration data need most, and the others' part is taken over
by those that stay (passes/graph/answers/changing.py).
Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378, sections 3 and 4.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.answers.changing import prune_layers
from onnx_lathe.passes.graph.initializers import read, write_float
from onnx_lathe.passes.graph.input_moments import Rows
from onnx_lathe.passes.graph.layers import Weight, not_float, other_use, weights
from onnx_lathe.passes.graph.model import set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.second_order.sweep import OfGroup, sweep
from onnx_lathe.passes.numerics.sparsity.n_of_m import holds, nm_kept

OBS = "obs"


@register
class PruneNM(Pass):
    """Sets all but the N largest of every M neighbouring weights to zero, such as 2:4 for sparse tensor
    cores.
    """

    name = "prune_nm"
    after = {"fold": "a folded batch normalization changes the magnitudes that are compared"}
    before = {
        "codebook": "a weight that shares its value cannot become zero alone",
        "int8": "the INT8 scales are chosen for the weights that are left",
    }

    @dataclass(frozen=True)
    class Config:
        n: int = option(2, "how many of every m neighbouring weights stay; below m", low=1)
        m: int = option(4, "how many neighbours, along the inputs of an output, make a group", low=2)
        score: str = option(
            "magnitude",
            "what is compared; obs: what layers answer on calibration data, and weights that are left make up for those "
            "that are not",
            choices=("magnitude", OBS),
        )
        layers: dict[str, float] = option(
            {}, "weights or layers by name pattern, with the value 0: they are left as they are"
        )
        # What zeros save in 64 weights (256 bytes) is about what naming the tensor in lathe.sparse costs.
        min_size: int = option(64, "smaller weights are left as they are", unit="elements", low=1)

        def __post_init__(self) -> None:
            if self.n >= self.m:
                raise UsageError(f"prune_nm: n must be below m, such as n=2, m=4, not n={self.n}, m={self.m}")
            if any(self.layers.values()):
                raise UsageError("prune_nm: a value in layers can only be 0, which leaves a layer as it is")

    def __init__(self, config: "PruneNM.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = ("calibrator",) if self.config.score == OBS else ()

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report, n, m = PassReport(), self.config.n, self.config.m
        found = list(weights(graph, refuse=report.skip, bodies=True))
        refused = [skip.node for skip in report.skips]
        left = by_weight(self.config.layers, found, refused, f"{self.name}(layers=...)")
        sparse, chosen = sparse_tensors(graph), dict[str, _Chosen]()
        for weight in found:
            axis = _axis(graph, weight, m, left, self.config.min_size)
            if isinstance(axis, str):
                report.skip(weight.nodes[0].name, axis)
                continue
            values = read(weight.tensor)
            done = holds(values, axis, n, m) and sparse.get(weight.name) == f"{n}:{m}"
            chosen[weight.name] = _Chosen(weight, axis, _zeros(values), done)
            if done:
                report.skip(weight.nodes[0].name, f"its weight is {n}:{m} already")
        said = self._prune(graph, [one for one in chosen.values() if not one.done], context, report)
        total, zeros = 0, 0
        for name, one in chosen.items():
            values = read(one.weight.tensor)
            if not one.done:
                sparse[name] = f"{n}:{m}"
                report.edit(
                    one.weight.nodes[0].name,
                    f"{_zeros(values):,} of {values.size:,} weights are zero, "
                    f"{n}:{m} along its inputs, {one.zeros:,} before{said.get(name, '')}",
                )
            total, zeros = total + values.size, zeros + _zeros(values)
        set_sparse_tensors(graph, sparse)
        if total:
            report.metrics["sparsity"] = zeros / total
        return report

    def _prune(
        self, graph: Graph, chosen: "Sequence[_Chosen]", context: Context, report: PassReport
    ) -> Mapping[str, str]:
        """Sets weights to zero. Returns, by weight, what more to say of it."""
        n, m, axes = self.config.n, self.config.m, {one.weight.name: one.axis for one in chosen}

        def by_magnitude(weight: Weight) -> None:
            values = read(weight.tensor)
            pruned = np.where(nm_kept(values, axes[weight.name], n, m), values, np.float32(0))
            write_float(weight.tensor, pruned.tobytes())
            context.progress(f"pruned {weight.name}")

        def swept(rows: Rows, weight: np.ndarray, moments: np.ndarray) -> np.ndarray:
            # a convolution's inputs are [channels, kernel]: neighbours are of one place of the kernel
            channels = rows.shape[1] if rows.weight.nodes[0].op == "Conv" else weight.shape[-1]
            order = np.arange(weight.shape[-1]).reshape(channels, -1).T.ravel()
            return sweep(weight, moments, OfGroup(n, m), order)

        if self.config.score == OBS:
            found = prune_layers(
                graph, {one.weight.name: one.weight for one in chosen}, swept, by_magnitude, context, report
            )
            return {name: f"; {what}" for name, what in found.items()}
        for one in chosen:
            by_magnitude(one.weight)
        return {}


@dataclass(frozen=True)
class _Chosen:
    weight: Weight
    axis: int
    """Of its inputs."""
    zeros: int
    """Before."""
    done: bool


def _zeros(values: np.ndarray) -> int:
    return values.size - int(np.count_nonzero(values))


def _axis(graph: Graph, weight: Weight, m: int, left: Collection[str], min_size: int) -> int | str:
    """The input axis of the weight, or why it is left alone."""
    if reason := not_float(weight.tensor, PruneNM.name):
        return reason
    if weight.name in left:
        return "its sparsity is set to 0"
    size = int(np.prod(weight.tensor.shape))
    if size < min_size:
        return f"its weight has {size} elements, fewer than min_size={min_size}"
    if reason := other_use(graph, weight):
        return reason
    axes = {_input_axis(node, len(weight.tensor.shape)) for node in weight.nodes}
    if len(axes) > 1:
        return "layers that share its weight read it along different axes"
    axis = axes.pop()
    for node in weight.nodes:
        groups = int(node.attrs.get("group", 1))
        inputs = int(weight.tensor.shape[axis]) // (groups if node.op == "ConvTranspose" else 1)
        if inputs % m:
            return f"its {inputs} inputs{' per group' if groups != 1 else ''} do not make groups of {m}"
    if not np.isfinite(read(weight.tensor)).all():
        return "its weight has NaN or infinite elements"
    return axis


def _input_axis(node: Node, rank: int) -> int:
    """Conv [O, I / group, ...] 1, ConvTranspose [I, O, ...] 0, Gemm by transB, MatMul the last but one."""
    if node.op == "MatMul":
        return rank - 2
    return 1 if node.op == "Conv" or node.attrs.get("transB", 0) else 0
