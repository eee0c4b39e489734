"""Where a resized axis takes its values from: as ONNX Runtime does it, and as LiteRT's kernels do.

Both resize each axis by itself, as a matrix does: [values before, values after]. ONNX Runtime's is what it makes of a unit
matrix; that of RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR is written here after kernels/internal/reference.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert.node import Unsupported


class Kernel(NamedTuple):
    """An operator of LiteRT, and the fields of its options."""

    linear: bool
    align_corners: bool
    half_pixel: bool


NEAREST = [Kernel(False, *flags) for flags in ((False, False), (False, True), (True, False))]
LINEAR = [Kernel(True, *flags) for flags in ((False, True), (False, False), (True, False))]


class Resampling(NamedTuple):
    """An axis as ONNX resizes it. `region`: of the image, the part of this axis that is taken, for tf_crop_and_resize."""

    op: str
    opset: int
    attributes: tuple[tuple[str, Any], ...]
    before: int
    after: int
    scale: float | None
    region: tuple[float, float] = (0.0, 1.0)


@cache
def weights(axis: Resampling) -> np.ndarray:
    """[before, after]: the weight of each value in each, as ONNX Runtime computes it on two axes of an image of four.

    Raises Unsupported for what it does not run.
    """
    stored = {"x": np.eye(axis.before, dtype=np.float32)[None, None], "region": np.zeros(0, np.float32)}
    names = ["x"]
    kept = dict(axis.attributes)
    if axis.op == "Upsample" and axis.opset < 9:
        kept["scales"] = [1.0, 1.0, 1.0, float(axis.scale or 1.0)]
    elif axis.op == "Upsample" or axis.opset < 11:
        names.append("scales")
    else:
        names += [
            "region",
            "scales" if axis.scale is not None else "",
            *(["sizes"] if axis.scale is None else []),
        ]
    if axis.region != (0.0, 1.0):
        stored["region"] = np.array([0, 0, 0, axis.region[0], 1, 1, 1, axis.region[1]], np.float32)
    if axis.scale is not None:
        stored["scales"] = np.array([1, 1, 1, axis.scale], np.float32)
    else:
        stored["sizes"] = np.array([1, 1, axis.before, axis.after], np.int64)
    node = onnx.helper.make_node(axis.op, names, ["y"], **kept)
    graph = onnx.helper.make_graph(
        [node],
        "axis",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, axis.before, axis.before])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in stored.items() if name in names[1:]],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", axis.opset)], ir_version=8
    )
    try:
        found = ort.run(ort.session(model), {"x": stored["x"]})["y"][0, 0]
    except ModelError as error:
        raise Unsupported("ONNX Runtime does not resize one axis of it by itself") from error
    return np.asarray(found)


@cache
def kernel_weights(kernel: Kernel, before: int, after: int) -> np.ndarray:
    """[before, after]: the weight of each value in each, as the kernel computes it."""
    columns = np.arange(after, dtype=np.float32)
    aligned = kernel.align_corners and after > 1
    scale = (
        np.float32(before - 1) / np.float32(after - 1) if aligned else np.float32(before) / np.float32(after)
    )
    found = np.zeros((before, after), np.float32)
    if not kernel.linear:
        places = (columns + np.float32(0.5 if kernel.half_pixel else 0.0)) * scale
        # the kernel rounds halves away from zero
        places = np.floor(places + np.float32(0.5)) if kernel.align_corners else np.floor(places)
        found[np.minimum(places.astype(np.int64), before - 1), np.arange(after)] = 1.0
        return found
    places = (columns + np.float32(0.5)) * scale - np.float32(0.5) if kernel.half_pixel else columns * scale
    low = np.maximum(np.floor(places), 0).astype(np.int64)
    high = np.minimum(np.ceil(places).astype(np.int64), before - 1)
    rest = places - low
    np.add.at(found, (np.minimum(low, before - 1), np.arange(after)), 1 - rest)
    np.add.at(found, (np.maximum(high, 0), np.arange(after)), rest)
    return found


def kernel_for(wanted: Sequence[tuple[np.ndarray, int, int]]) -> Kernel | None:
    """The kernel that computes all of these axes, given as (weights, size before, size after)."""
    nearest = all(set(np.unique(one)) <= {0.0, 1.0} for one, _, _ in wanted)
    for kernel in NEAREST if nearest else LINEAR:
        if all(_same(one, kernel_weights(kernel, before, after)) for one, before, after in wanted):
            return kernel
    return None


def _same(wanted: np.ndarray, found: np.ndarray) -> bool:
    """But for rounding: places are computed in float32, and their error grows with the size."""
    return wanted.shape == found.shape and bool(
        np.abs(wanted - found).max() <= 1e-6 + 5e-7 * sum(wanted.shape)
    )


def taps(wanted: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(places, their weights) of as many values as go into one at most."""
    count = int((wanted != 0).sum(axis=0).max())
    order = np.argsort(wanted == 0, axis=0, kind="stable")[:count]
    return [(places, np.take_along_axis(wanted, places[None], axis=0)[0]) for places in order]


def attributes(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Those that matter for one axis."""
    dropped = ("axes", "keep_aspect_ratio_policy", "scales")
    return tuple(sorted((name, value) for name, value in given.items() if name not in dropped))
