"""Where ONNX Runtime takes the values of a resized axis from: what it makes of a unit matrix, for targets that compare."""

from functools import cache
from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort


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
