"""What may still change of a weight, by how it is stored: elements that are not zero, the values of a codebook, the steps
of integers.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Tensor
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.input_moments import Rows
from onnx_lathe.passes.graph.layers import constant_value
from onnx_lathe.passes.graph.model import sparse_tensors
from onnx_lathe.passes.numerics.clustering.mantissa import mantissa_bits, round_mantissa
from onnx_lathe.passes.numerics.second_order.fitting import fit_free, fit_shared
from onnx_lathe.passes.numerics.second_order.paired import JointMoments


@dataclass
class Form:
    """A weight as rows [groups, r, d], float64, times the layer's alpha. `fit` gives one that answers better, or None;
    `store` writes it.
    """

    rows: Rows
    alpha: float
    now: np.ndarray
    scales = False
    """Whether each output channel can be multiplied."""

    def fit(self, moments: JointMoments) -> np.ndarray | None:
        return None

    def store(self, weight: np.ndarray, gains: np.ndarray) -> None:
        """`weight`: what `fit` gave, or `now`; `gains`: what it is multiplied with, [groups, r]."""
        raise NotImplementedError


@dataclass
class Elements(Form):
    """A plain initializer. Where `free` is false, elements stay 0."""

    tensor: Constant
    free: np.ndarray
    scales = True

    def fit(self, moments: JointMoments) -> np.ndarray | None:
        return fit_free(moments, self.now, self.free)

    def store(self, weight: np.ndarray, gains: np.ndarray) -> None:
        values = weight * (gains[:, :, None] / self.alpha)
        write(self.tensor, np.ascontiguousarray(self.rows.back(values)).astype(np.float32))


@dataclass
class Values(Form):
    """A codebook, or one for each group of channels."""

    codebooks: list[Constant]
    places: np.ndarray
    """Of each weight its value in all codebooks behind one another, [groups, r, d]."""
    keeps_zero: bool

    def fit(self, moments: JointMoments) -> np.ndarray | None:
        values = self._shared()
        fixed = (values == 0) if self.keeps_zero else np.zeros(values.size, bool)
        fitted = fit_shared(moments, self.now, self.places, values * self.alpha, fixed) / self.alpha
        found: np.ndarray = self._rounded(fitted)[self.places] * self.alpha
        return found

    def store(self, weight: np.ndarray, gains: np.ndarray) -> None:
        if weight is self.now:
            return
        values, start = self._shared(), 0
        values[self.places] = weight / self.alpha
        for codebook in self.codebooks:
            stop = start + codebook.shape[0]
            write(codebook, values[start:stop].astype(np.float32))
            start = stop

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        """With as few bits of mantissa as each codebook's values have now: how short they are was decided."""
        parts = np.split(values.astype(np.float32), np.cumsum([one.shape[0] for one in self.codebooks])[:-1])
        bits = [mantissa_bits(read(one)) for one in self.codebooks]
        return np.concatenate(
            [round_mantissa(*one) for one in zip(parts, bits, strict=True)], dtype=np.float64
        )

    def _shared(self) -> np.ndarray:
        return np.concatenate([read(codebook) for codebook in self.codebooks]).astype(np.float64)


@dataclass
class Steps(Form):
    """Integers with a scale for each output channel, or for each block of its inputs: `axis` is that of the channels."""

    levels: Constant
    factors: Constant
    axis: int
    scales = True

    def scale(self) -> np.ndarray:
        """Of each output channel [groups, r], float64, if there is one for each."""
        return read(self.factors).astype(np.float64).reshape(self.now.shape[:2])

    def store(self, weight: np.ndarray, gains: np.ndarray) -> None:
        shape = [1] * len(self.factors.shape)
        shape[self.axis] = -1
        write(self.factors, (read(self.factors) * gains.reshape(shape)).astype(np.float32))


@dataclass
class Fixed(Form):
    """Nothing of the weight changes, but the layer's bias may."""

    def store(self, weight: np.ndarray, gains: np.ndarray) -> None:
        """Nothing to write."""


def form_of(graph: Graph, rows: Rows) -> Form:
    """Raises one of evaluate.REFUSALS if the weight cannot be decoded."""
    tensor, weight = rows.weight.tensor, rows.weight
    alpha = float(weight.nodes[0].attrs.get("alpha", 1.0)) if weight.nodes[0].op == "Gemm" else 1.0
    now = rows.of(constant_value(tensor, graph.opset)).astype(np.float64) * alpha
    sparse = tensor.name in sparse_tensors(graph)
    if isinstance(tensor, Constant):
        return Elements(rows, alpha, now, tensor, (now != 0) if sparse else np.ones(now.shape, bool))
    if (found := _codebooks(tensor)) is not None:
        codebooks, places = found
        return Values(rows, alpha, now, codebooks, rows.of(places), sparse)
    if (steps := _steps(tensor, weight.axis, now.shape[0] * now.shape[1])) is not None:
        return Steps(rows, alpha, now, *steps)
    return Fixed(rows, alpha, now)


def _codebooks(tensor: Tensor) -> tuple[list[Constant], np.ndarray] | None:
    """The codebooks that the tensor alone reads, and which of their values each element is."""
    node = tensor.inputs[0]
    if node.op == "Concat":
        parts = [_codebooks(source) if source.inputs else None for source in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        starts = np.cumsum([0, *(sum(one.shape[0] for one in books) for books, _ in known)])
        places = [own + start for (_, own), start in zip(known, starts[:-1], strict=True)]
        return [book for books, _ in known for book in books], np.concatenate(places, node.attrs["axis"])
    if node.op != "Gather":
        return None
    codebook, indices = node.inputs
    if indices.inputs and indices.inputs[0].op == "Cast":
        indices = indices.inputs[0].inputs[0]
    if not isinstance(codebook, Constant) or not isinstance(indices, Constant) or len(codebook.outputs) > 1:
        return None
    return [codebook], read(indices).astype(np.int64)


def _steps(tensor: Tensor, axis: int, channels: int) -> tuple[Constant, Constant, int] | None:
    """The integers and scales of a weight that is dequantized, and the scales' axis of output channels."""
    node = tensor.inputs[0]
    shaped = node.op == "Reshape" and bool(node.inputs[0].inputs)
    if shaped:
        node = node.inputs[0].inputs[0]
    if node.op != "DequantizeLinear" or not isinstance(node.inputs[0], Constant):
        return None
    scales = node.inputs[1]
    if not isinstance(scales, Constant) or len(scales.outputs) > 1 or scales.dtype != np.float32:
        return None
    if len(scales.shape) == 1:
        fits = scales.shape[0] == channels and node.attrs.get("axis", 1) % len(node.inputs[0].shape) == axis
        return (node.inputs[0], scales, 0) if fits else None
    fits = len(scales.shape) > axis and scales.shape[axis] == channels
    return (node.inputs[0], scales, axis) if fits else None
