"""Weights and activations of each layer, before and after, as histograms with centroids and clip ranges."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.optimizer.calibrated import LEVELS
from onnx_lathe.optimizer.layer_errors import BINS, Measured, shares
from onnx_lathe.optimizer.pairing import Network, Pair
from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import Weight, codebook_of, constant_value, weights

SAMPLED = 100_000
"""Weights of more elements are shown by an even sample of about so many."""
MOST_CENTROIDS = 256
COUNTED = 1 << 20
"""Indices that are counted at once."""


class Weights:
    """The weights of one model by the layer that reads them."""

    def __init__(self, side: Network) -> None:
        self._by_layer: dict[str, Weight] = {}
        for weight in weights(
            side.graph, lambda node, reason: None, halves=True, bodies=True, everywhere=True
        ):
            for node in weight.nodes:
                self._by_layer.setdefault(node.name, weight)

    def of(self, layer: str) -> Weight | None:
        return self._by_layer.get(layer)

    def names(self, layer: str) -> set[str]:
        """Of the weight and of what it is decoded from: passes keep a weight's name on one of them."""
        found = self._by_layer.get(layer)
        names: set[str] = set()
        behind = [] if found is None else [found.tensor]
        while behind:
            tensor = behind.pop()
            names.add(str(tensor.name))
            behind += [one for node in tensor.inputs for one in node.inputs]
        return names


def weight_series(pair: Pair, before: Weights, after: Weights) -> list[dict[str, Any]]:
    """The weight of a layer as it was and as it is, of a split layer that of each part: `low`, `high`, `shares` of
    all elements, zeros left out, `zeros`, `elements`, `sampled`; `centroids` with a codebook's values and their shares, `clip` with
    the range of INT8.
    """
    found = []
    if pair.before is not None and (weight := before.of(pair.before.node)) is not None:
        found.append(_series("before", weight))
    for row in pair.after:
        if (weight := after.of(row.node)) is not None:
            part = row.node.removeprefix(f"{pair.name}_") if row.node != pair.name else ""
            found.append(_series(f"after, {part} factor" if part else "after", weight))
    return _on_one_axis([one for one in found if one is not None])


def _series(label: str, weight: Weight) -> dict[str, Any] | None:
    tensor = weight.tensor
    try:
        codes = codebook_of(tensor)
        values = np.asarray(constant_value(tensor, weight.opset)) if codes is None else None
    except REFUSALS:
        return None
    entry: dict[str, Any] = {"label": label, "tensor": weight.name}
    if codes is not None and codes[0].size <= MOST_CENTROIDS:
        counts = _counted(np.asarray(codes[1]), codes[0].size)
        order = np.argsort(codes[0])
        entry["centroids"] = [_short(value) for value in codes[0][order]]
        entry["centroid_shares"] = [_short(share) for share in counts[order] / max(int(counts.sum()), 1)]
    if clip := _clip(tensor):
        entry["clip"] = clip
    if codes is None:
        return entry | _sampled(np.asarray(values), lambda some: some)
    codebook = codes[0].astype(np.float32)
    return entry | _sampled(np.asarray(codes[1]), lambda some: codebook[some.astype(np.int64)])


def _counted(indices: np.ndarray, codes: int) -> np.ndarray:
    """How often each code is there, of piece after piece: as 64-bit integers all would take eight times their memory."""
    flat, counts = indices.reshape(-1), np.zeros(codes, np.int64)
    for start in range(0, flat.size, COUNTED):
        counts += np.bincount(flat[start : start + COUNTED].astype(np.int64), minlength=codes)
    return counts


def _sampled(values: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    flat = values.reshape(-1)
    step = flat.size // SAMPLED | 1 if flat.size > SAMPLED else 1  # odd: it does not fall in with channels
    flat = decode(flat[::step]).astype(np.float32)
    flat = flat[np.isfinite(flat)]
    rest = flat[flat != 0]
    return {
        "elements": int(values.size),
        "sampled": int(flat.size) if step > 1 else 0,
        "zeros": _short(1 - rest.size / max(flat.size, 1)),
        "values": rest,
        "of": flat.size,
    }


def _on_one_axis(series: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Histograms of all series over the same bins, in place of their values."""
    filled = [one["values"] for one in series if one["values"].size]
    low = float(min((values.min() for values in filled), default=0.0))
    high = float(max((values.max() for values in filled), default=1.0))
    high = high if high > low else low + 1.0
    for one in series:
        values, total = one.pop("values"), one.pop("of")
        one |= {"low": _short(low), "high": _short(high), "shares": shares(values, low, high, BINS, total)}
    return list(series)


def _clip(tensor: Tensor) -> list[float] | None:
    """The range that the integers of a quantized weight reach, of the channel where it is widest."""
    while tensor.inputs and tensor.inputs[0].op == "Reshape":
        tensor = tensor.inputs[0].inputs[0]
    node: Node | None = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "DequantizeLinear" or not isinstance(node.inputs[1], Constant):
        return None
    if str(node.inputs[0].dtype) not in ("int8", "uint8"):
        return None
    reach = LEVELS * float(np.max(read(node.inputs[1]).astype(np.float32), initial=0.0))
    return [_short(-reach), _short(reach)]


def activation(
    pair: Pair, before: Network, ranges: Mapping[str, list[float]], measured: Measured | None
) -> dict[str, Any] | None:
    """The output of a layer: the histogram of its values where the run measured them, and its calibrated range."""
    chain = before.behind(pair.name) if pair.before is not None else []
    ranged = next((name for name in chain if name in ranges), "")
    seen = {} if measured is None else measured.values
    tensor = ranged if ranged in seen else next((name for name in chain if name in seen), ranged)
    if not tensor:
        return None
    entry: dict[str, Any] = {"tensor": tensor} | seen.get(tensor, {})
    if ranged:
        entry |= {"clip": ranges[ranged], "clip_tensor": ranged}
    return entry


def _short(value: float) -> float:
    """Four digits: what a picture shows."""
    return float(f"{float(value):.4g}")
