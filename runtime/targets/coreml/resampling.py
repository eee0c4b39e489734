"""Where a resized axis takes its values from: as ONNX Runtime does, and as MIL's documentation says its operations do.

Both resize each axis by itself, as a matrix does: [values before, values after].
Source: coremltools, docstrings of `resize_bilinear` and `upsample_nearest_neighbor` (mil/ops/defs/iOS15/image_resizing.py).
"""

from functools import cache
from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort

MODES = ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT")
"""`sampling_mode` of resize_bilinear."""


@cache
def by_onnxruntime(
    op: str, opset: int, attributes: tuple[tuple[str, Any], ...], before: int, after: int, scale: float | None
) -> np.ndarray:
    """[before, after]: the weight of each value in each. Raises ModelError for what needs more than one axis."""
    stored = {"x": np.eye(before, dtype=np.float32)[None, None], "region": np.zeros(0, np.float32)}
    names = ["x"]
    kept = dict(attributes)
    if op == "Upsample" and opset < 9:
        kept["scales"] = [1.0, 1.0, 1.0, float(scale or 1.0)]
    elif op == "Upsample" or opset < 11:
        names.append("scales")
    else:
        names += ["region", "scales" if scale is not None else "", *(["sizes"] if scale is None else [])]
    if scale is not None:
        stored["scales"] = np.array([1, 1, 1, scale], np.float32)
    else:
        stored["sizes"] = np.array([1, 1, before, after], np.int64)
    node = onnx.helper.make_node(op, names, ["y"], **kept)
    read = {name: value for name, value in stored.items() if name in names and name != "x"}
    graph = onnx.helper.make_graph(
        [node],
        "axis",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, before, before])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in read.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    return ort.run(ort.session(model), {"x": stored["x"]})["y"][0, 0]


def by_mil(way: str, before: int, after: int) -> np.ndarray:
    """[before, after], of `nearest` by a whole number of times, or of one of MODES."""
    columns = np.arange(after)
    weights = np.zeros((before, after), np.float32)
    if way == "nearest":
        weights[np.minimum(columns * before // after, before - 1), columns] = 1.0
        return weights
    places = np.clip(_places(way, before, after, columns), 0, before - 1)
    start = np.floor(places).astype(np.int64)
    rest = (places - start).astype(np.float32)
    np.add.at(weights, (start, columns), 1 - rest)
    np.add.at(weights, (np.minimum(start + 1, before - 1), columns), rest)
    return weights


def _places(way: str, before: int, after: int, columns: np.ndarray) -> np.ndarray:
    if way == "UNALIGN_CORNERS":
        return (columns + 0.5) * (before / after) - 0.5
    if after == 1:
        return np.zeros(1)
    if way == "STRICT_ALIGN_CORNERS":
        return columns * ((before - 1) / (after - 1))
    return columns * ((before - before / after) / (after - 1))
