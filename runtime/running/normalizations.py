"""How far samples are from those that a network was trained on, by what its batch normalizations remember of the latter.

Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, and Cai et al., "ZeroQ",
2020, calibrate by the same statistics.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_lathe.runtime.data.source import DataSource
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.taps import tapped


@dataclass(frozen=True)
class Likeness:
    """Over the channels of `layers` batch normalizations: the median distance of means, in the stored deviations, and the
    median factor between deviations, at least 1. `distance` is one figure of both: log(1 + KL) of the normal distributions,
    a mean over channels and layers.
    """

    layers: int
    mean: float
    factor: float
    distance: float


class Remembered:
    """The batch normalizations of a model whose statistics lie in the file, and a session that returns what they read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises ModelError if ONNX Runtime refuses the model."""
        self.stored = dict(_stored(model))
        self._session = tapped(model, list(self.stored))

    def likeness(self, data: DataSource, samples: int) -> Likeness | None:
        """Of so many samples, or of one where there is nothing to compare with: then None, as where samples are so far
        off that the network overflows.

        Raises ModelError if the model does not take them.
        """
        sums = {name: np.zeros((3, len(mean))) for name, (mean, _) in self.stored.items()}
        fixed = fixed_batch([value.shape for value in self._session.get_inputs()]) or 1
        for seen, batch in enumerate(data.batches(fixed), 1):
            rows = np.arange(fixed) % batch.count  # a fixed batch is filled up with repeats
            found = ort.run(self._session, {name: values[rows] for name, values in batch.inputs.items()})
            for name, total in sums.items():
                values = np.moveaxis(found[name].astype(np.float64), 1, 0).reshape(len(total[0]), -1)
                with np.errstate(invalid="ignore", over="ignore"):  # samples may be far off
                    total += [values.sum(1), (values**2).sum(1), np.full(len(values), values.shape[1])]
            if seen * fixed >= samples or not sums:
                break
        return _compared(sums, self.stored)


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """(the tensor that one reads, its mean and variance [channels])."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer} | {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    results = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        statistics = [constants.get(name) for name in node.input[3:5]]
        if node.op_type == "BatchNormalization" and node.input[0] in results and all(statistics):
            mean, variance = (
                numpy_helper.to_array(one).astype(np.float64) for one in statistics if one is not None
            )
            yield node.input[0], (mean, variance)


def _compared(
    sums: dict[str, np.ndarray], stored: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Likeness | None:
    shifts, factors, distances = [], [], []
    for name, (total, squares, count) in sums.items():
        mean, variance = stored[name]
        known = (variance > 1e-12) & (count > 0)
        if not known.any():
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            own = total[known] / count[known]
            spread = (squares[known] / count[known] - own**2).clip(1e-6 * variance[known])
            shift, ratio = (own - mean[known]) / np.sqrt(variance[known]), spread / variance[known]
        shifts.append(np.abs(shift))
        factors.append(np.exp(np.abs(np.log(ratio)) / 2))
        distances.append(np.log1p((ratio + shift**2 - 1 - np.log(ratio)) / 2).mean())
    if not distances or not np.isfinite(distances).all():
        return None
    return Likeness(
        len(distances),
        float(np.median(np.concatenate(shifts))),
        float(np.median(np.concatenate(factors))),
        float(np.mean(distances)),
    )
