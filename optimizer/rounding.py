"""How far rounding alone moves the outputs of a model, on one input: what no lossless pass is blamed for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.core.contract import flipped
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort

DRAWS = 3
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def rounding_error(
    model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Output -> the largest change of an element that rounding makes, as a magnitude; of integers and texts,
    the largest share of elements that it changes.

    Rounded otherwise are the operations, when ONNX Runtime computes node by node what it else fuses, and
    the weights, when each has the error that storing it has: one unit in the last place up or down in one
    of twelve elements, which is as much energy as an error spread evenly over half a unit.
    """
    found = dict.fromkeys(expected, 0.0)
    for outputs in _variants(model, feeds):
        for name, before in expected.items():
            if outputs[name].shape != before.shape:
                continue
            if not np.issubdtype(before.dtype, np.floating):
                found[name] = max(found[name], flipped(before, outputs[name]))
            else:
                moved = np.abs(before.astype(np.float64) - outputs[name])
                found[name] = max(found[name], float(moved.max(initial=0, where=np.isfinite(moved))))
    return found


def _variants(
    model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """The outputs, rounded in one way after the other. What ONNX Runtime does not take is left out."""
    for seed in range(1 + DRAWS):
        try:
            if seed == 0:
                yield ort.run(ort.session(model, optimized=False), feeds)
            else:
                yield ort.run(ort.session(_perturbed(model, seed)), feeds)
        except ModelError:
            continue


def _perturbed(model: onnx.ModelProto | Path, seed: int) -> onnx.ModelProto:
    changed = model_file.load(model) if isinstance(model, Path) else onnx.ModelProto()
    if isinstance(model, onnx.ModelProto):
        changed.CopyFrom(model)
    generator = np.random.default_rng(seed)
    for tensor in changed.graph.initializer:
        if tensor.data_type in _FLOATS:
            values = onnx.numpy_helper.to_array(tensor)
            draw = generator.integers(0, 24, values.shape)
            toward = np.where(draw == 0, np.inf, -np.inf).astype(values.dtype)
            with np.errstate(all="ignore"):
                moved = np.where((draw < 2) & (values != 0), np.nextafter(values, toward), values)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(values.dtype), tensor.name))
    return changed
