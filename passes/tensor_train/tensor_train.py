"""Tensor trains: a weight becomes a chain of small cores, which are weights of MatMuls themselves and can
be trained.

    MatMul(x, W)   becomes   Reshape -> (MatMul(core) -> Reshape -> Transpose) per core -> Reshape, see passes/tensor_train/writer.py

The layer has many times fewer parameters than a split in two would leave it, at an error that retraining
has to make good. Its multiply-accumulates grow with the square of the rank: a high one takes more of them
than the layer did.

Sources: Novikov et al., "Tensorizing Neural Networks", NIPS 2015, section 4 (Gemm and MatMul); Garipov et
al., "Ultimate Tensorization", 2016, section 4 (Conv: one convolution for all channels, then a train over
the channels); Oseledets, 2011 (numerics/tensor_train.py).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import (
    WEIGHT_INPUT,
    Weight,
    not_float,
    other_use,
    weights,
)
from onnx_lathe.passes.graph.model import node_metadata, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.shapes import TensorType, infer_types
from onnx_lathe.passes.numerics.rank.tensor_train import (
    Modes,
    balanced,
    largest_rank,
    norm,
    ranks_of,
    relative_error,
    tt_svd,
)
from onnx_lathe.passes.tensor_train.writer import BIAS_INPUT, TrainWriter

_FACTORS = re.compile(r"[1-9]\d*(x[1-9]\d*)*:[1-9]\d*(x[1-9]\d*)*")


@register
class TensorTrain(Pass):
    """Splits weights into tensor trains: many times fewer parameters, to be retrained."""

    name = "tensor_train"
    after = {"fold": "a folded batch normalization is part of the weight"}
    before = {
        "codebook": "a train is computed from float32 weights; its cores can have codebooks",
        "int8": "a train is computed from float32 weights; its cores can be quantized",
    }

    @dataclass(frozen=True)
    class Config:
        shrink: float = option(
            4.0, "without rank and tolerance: how many times fewer parameters a layer has at least", low=1.0
        )
        rank: int | None = option(None, "largest rank between two cores", low=1)
        tolerance: float | None = option(
            None, "largest relative error of a weight, which ranks are chosen for", low=0.0, high=1.0
        )
        macs: float = option(
            1.0, "most multiply-accumulates that a layer may have afterwards, relative to before", low=0.0
        )
        cores: int = option(
            2, "factors that inputs and outputs are split into; a kernel has a core of its own", low=2, high=8
        )
        layers: dict[str, int] = option(
            {}, "rank for weights or layers by name pattern; 0 leaves one as it is", low=0
        )
        factors: dict[str, str] = option(
            {}, "factors by name pattern, of inputs and outputs, such as 28x28:20x15"
        )
        # The nodes of a train take 1 to 2 kB in the file.
        min_size: int = option(1024, "smaller weights are left as they are", unit="elements", low=1)

        def __post_init__(self) -> None:
            for pattern, text in self.factors.items():
                sides = text.split(":")
                if (
                    not _FACTORS.fullmatch(text)
                    or sides[0].count("x") != sides[1].count("x")
                    or "x" not in text
                ):
                    raise UsageError(
                        f"tensor_train(factors=...) for '{pattern}': '{text}' does not say two or more factors of the inputs and as many "
                        "of the outputs; write for example 28x28:20x15"
                    )

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip))
        refused = [skip.node for skip in report.skips]
        single = by_weight(self.config.layers, found, refused, "tensor_train(layers=...)")
        factors = by_weight(self.config.factors, found, refused, "tensor_train(factors=...)")
        sparse, types = sparse_tensors(graph), infer_types(graph) if found else {}
        writer, splits = TrainWriter(graph), []
        for weight in found:
            reason = self._refusal(graph, weight, single.get(weight.name), sparse) or _unfit(weight, types)
            if reason is None:
                context.progress(f"splitting {weight.name}")
                modes = self._modes(weight, factors.get(weight.name))
                split = self._split(writer, weight, modes, single.get(weight.name), types)
                if isinstance(split, _Split):
                    splits.append(split)
                    report.edit(split.node, split.what)
                    continue
                reason = split
            report.skip(weight.nodes[0].name, reason)
        report.metrics.update(_metrics(splits))
        return report

    def _refusal(
        self, graph: Graph, weight: Weight, rank: int | None, sparse: Mapping[str, str]
    ) -> str | None:
        """Why the weight stays as it is."""
        if any(node_metadata(node).get(metadata.PASS) == self.name for node in weight.nodes):
            return "it is part of a tensor train"
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = math.prod(weight.tensor.shape)
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if rank == 0:
            return "its rank is set to 0"
        if weight.name in sparse:
            return f"its zeros must stay ({metadata.SPARSE}), and a tensor train would fill them"
        if reason := other_use(graph, weight):
            return reason
        values = read(weight.tensor)
        return (
            None
            if np.isfinite([values.min(), values.max()]).all()
            else "its weight has NaN or infinite elements"
        )

    def _modes(self, weight: Weight, factors: str | None) -> Modes:
        """The factors as given, or the most balanced ones."""
        inputs, outputs, kernel = _sizes(weight)
        if factors is None:
            return Modes(
                balanced(inputs, self.config.cores), balanced(outputs, self.config.cores)[::-1], kernel
            )
        first, second = (tuple(map(int, side.split("x"))) for side in factors.split(":"))
        for side, size, what in ((first, inputs, "inputs"), (second, outputs, "outputs")):
            if math.prod(side) != size:
                raise UsageError(
                    f"tensor_train(factors=...): {weight.name} has {size} {what}, and {_times(side)} is {math.prod(side)}; "
                    f"{_times(balanced(size, len(side)))} would do"
                )
        return Modes(first, second, kernel)

    def _split(
        self,
        writer: TrainWriter,
        weight: Weight,
        modes: Modes,
        rank: int | None,
        types: Mapping[str, TensorType],
    ) -> "_Split | str":
        """Puts a train in place of every layer that reads the weight; or says why not, having changed
        nothing.
        """
        config, size = self.config, math.prod(weight.tensor.shape)
        rank, most_macs = rank or config.rank, config.macs * size
        if rank is None and config.tolerance is None:
            most = size / config.shrink
            rank = largest_rank(
                modes.sizes, lambda ranks: modes.parameters(ranks) <= most and modes.macs(ranks) <= most_macs
            )
            if rank is None:
                ranks = (1,) * (len(modes.sizes) - 1)
                return f"ranks of 1 give {_cost(modes, ranks, size)}: too many for shrink={config.shrink:g}, macs={config.macs:g}"
        tensor = modes.fold(_matrix(weight))
        cores = tt_svd(tensor, config.tolerance or 0.0, rank)
        ranks = ranks_of(cores)
        if modes.parameters(ranks) >= size:
            return f"ranks {_listed(ranks)} give {_cost(modes, ranks, size)}"
        if modes.macs(ranks) > most_macs:
            return f"ranks {_listed(ranks)} give {_cost(modes, ranks, size)}; macs={math.ceil(modes.macs(ranks) / size)} allows that"
        split = _Split(
            weight.nodes[0].name,
            modes,
            ranks,
            tuple(_positions(node, types) for node in weight.nodes),
            norm(tensor),
            relative_error(tensor, cores),
        )
        train = writer.train(weight.tensor, modes, cores)
        for node in weight.nodes:
            writer.replace(node, train, _leading(node, types))
        return split


@dataclass(frozen=True)
class _Split:
    """What a weight became. `positions`: output positions per sample of every layer that reads it, None
    where they are not known.
    """

    node: str
    modes: Modes
    ranks: tuple[int, ...]
    positions: tuple[int | None, ...]
    norm: float
    error: float
    """How far the train is from the weight, relative to `norm`."""

    @property
    def what(self) -> str:
        """In a phrase; MACs are those of one layer."""
        per, times = ("per position", 1) if self.positions[0] is None else ("per sample", self.positions[0])
        size, after = self.modes.size, self.modes.parameters(self.ranks)
        return (
            f"{_times(self.modes.inputs)}:{_times(self.modes.outputs)}, ranks {_listed(self.ranks)}: {size:,} -> {after:,} parameters "
            f"({size / after:.1f}x fewer), {size * times:,} -> {self.modes.macs(self.ranks) * times:,} MACs {per}, "
            f"relative error {self.error:.3g}"
        )


def _metrics(splits: Sequence[_Split]) -> dict[str, float]:
    """What all split weights have together; MACs are per sample, and there if they are known for all."""
    if not splits:
        return {}
    error = math.sqrt(
        sum((split.norm * split.error) ** 2 for split in splits)
        / (sum(split.norm**2 for split in splits) or 1.0)
    )
    found = {
        "split_parameters_before": float(sum(split.modes.size for split in splits)),
        "split_parameters": float(sum(split.modes.parameters(split.ranks) for split in splits)),
        "weight_error": error,
    }
    times = [[count for count in split.positions if count is not None] for split in splits]
    if all(len(counts) == len(split.positions) for counts, split in zip(times, splits, strict=True)):
        found["split_macs_before"] = float(
            sum(sum(counts) * split.modes.size for counts, split in zip(times, splits, strict=True))
        )
        found["split_macs"] = float(
            sum(
                sum(counts) * split.modes.macs(split.ranks)
                for counts, split in zip(times, splits, strict=True)
            )
        )
    return found


def _unfit(weight: Weight, types: Mapping[str, TensorType]) -> str | None:
    """Why the layers that read the weight cannot be written as trains."""
    for node in weight.nodes:
        if node.op == "ConvTranspose":
            return "it is a ConvTranspose; tensor_train splits Conv, Gemm and MatMul"
        if node.attrs.get("group", 1) != 1:
            return f"its channels are in {node.attrs['group']} groups"
        if node.op == "MatMul" and len(weight.tensor.shape) != 2:
            return f"its weight has {len(weight.tensor.shape)} dimensions, not 2"
        if node.op == "MatMul" and _shape(node.inputs[0], types) is None:
            return "how many dimensions its input has is not known before it runs"
        if (
            node.attrs.get("beta", 1.0) != 1
            and len(node.inputs) > BIAS_INPUT
            and not isinstance(node.inputs[BIAS_INPUT], Constant)
        ):
            return f"its bias is computed at run time and scaled by beta={node.attrs['beta']:g}"
    return (
        None
        if len({_view(node) for node in weight.nodes}) == 1
        else "its layers read the weight in different ways"
    )


def _view(node: Node) -> tuple[bool, float]:
    """Whether the layer's weight is [O, I, ...] rather than [I, O], and what it is multiplied by."""
    return node.op == "Conv" or bool(node.attrs.get("transB", 0)), float(node.attrs.get("alpha", 1.0))


def _sizes(weight: Weight) -> tuple[int, int, int | None]:
    """Inputs, outputs, and positions of the kernel; None where no layer does anything but mix channels."""
    shape = weight.tensor.shape
    outputs, inputs = shape[:2] if _view(weight.nodes[0])[0] else shape[1::-1]
    return inputs, outputs, math.prod(shape[2:]) if any(map(_convolves, weight.nodes)) else None


def _matrix(weight: Weight) -> np.ndarray:
    """The weight as its layers use it: [I, O, kernel], float32."""
    values, (output_first, factor) = read(weight.tensor), _view(weight.nodes[0])
    matrix = np.float32(factor) * values.reshape(*values.shape[:2], -1)
    return matrix.swapaxes(0, 1) if output_first else matrix


def _convolves(node: Node) -> bool:
    """Whether it is a Conv that does more than to mix channels."""
    moves = any(size != 1 for size in node.attrs.get("strides", ())) or any(node.attrs.get("pads", ()))
    return node.op == "Conv" and (moves or math.prod(node.inputs[WEIGHT_INPUT].shape[2:]) > 1)


def _leading(node: Node, types: Mapping[str, TensorType]) -> int:
    """Dimensions of the input of a Gemm or MatMul in front of the one that is summed over."""
    shape = _shape(node.inputs[0], types) if node.op == "MatMul" else None
    return 1 if shape is None else len(shape) - 1


def _positions(node: Node, types: Mapping[str, TensorType]) -> int | None:
    """Output positions of the layer per sample, the first dimension being the batch; None if they are not
    known before it runs.
    """
    shape = _shape(node.outputs[0], types)
    sizes: Sequence[int | str | None] = (
        (None,) if shape is None else shape[2:] if node.op == "Conv" else shape[1:-1]
    )
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _shape(tensor: Tensor, types: Mapping[str, TensorType]) -> tuple[int | str | None, ...] | None:
    known = types.get(tensor.name)
    return None if known is None else known.shape


def _cost(modes: Modes, ranks: Sequence[int], size: int) -> str:
    return f"{modes.parameters(ranks):,} parameters and {modes.macs(ranks):,} MACs per position, and it has {size:,} of both"


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
