"""Resize, one axis after the other, from the coordinates that the ONNX standard defines."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_CUBIC_A = -0.75
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
}


@operator("Resize", since=11, numbers=(1, 2, 3))
def resize(node: Node) -> Function:
    mode, coordinates = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    if coordinates.startswith("tf_"):
        raise RefusedError(f"with {coordinates}")
    for attribute in ("antialias", "exclude_outside"):
        if node.integer(attribute):
            raise RefusedError(f"with {attribute}")
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise RefusedError("with keep_aspect_ratio_policy")
    given, rounding = node.integers("axes"), node.text("nearest_mode", "round_prefer_floor")
    cubic = node.number("cubic_coeff_a", _CUBIC_A)

    def run(x: Tensor, roi: object, scales: list[float] | None = None, sizes: list[int] | None = None) -> Tensor:
        axes = range(x.dim()) if given is None else given
        for index, axis in enumerate(axes):
            size = x.shape[axis]
            scale = sizes[index] / size if sizes else float(scales[index]) if scales else 1.0
            result = sizes[index] if sizes else int(np.floor(np.float32(size) * np.float32(scale)))
            if scale != 1 or result != size:
                at = _sources(result, size, scale, coordinates)
                x = _sampled(x, axis, *_taps(at, mode, rounding, cubic))
        return x

    return run


def _sources(result: int, size: int, scale: float, mode: str) -> np.ndarray:
    """Coordinate in the input of every element of one output axis, float32 [result]."""
    index = np.arange(result, dtype=np.float32)
    if mode == "asymmetric":
        return index / np.float32(scale)
    if mode == "align_corners":
        return index * np.float32((size - 1) / (result - 1)) if result > 1 else index
    if mode == "pytorch_half_pixel" and result == 1:
        return np.zeros(1, np.float32)
    centred = (index + np.float32(0.5)) / np.float32(scale) - np.float32(0.5)
    if mode == "half_pixel_symmetric":
        centred += np.float32(size / 2 * (1 - result / (scale * size)))
    return centred


def _taps(at: np.ndarray, mode: str, rounding: str, cubic: float) -> tuple[np.ndarray, np.ndarray]:
    """Input indices, which may lie outside, and weights of each output element, both [result, taps]."""
    if mode == "nearest":
        return _ROUNDINGS[rounding](at)[:, None], np.ones((len(at), 1))
    floor = np.floor(at)
    part = (at - floor)[:, None]
    if mode == "linear":
        return floor[:, None] + [0, 1], np.concatenate([1 - part, part], 1)
    distance = np.abs(part - [-1, 0, 1, 2])
    near = ((cubic + 2) * distance - (cubic + 3)) * distance**2 + 1
    far = ((cubic * distance - 5 * cubic) * distance + 8 * cubic) * distance - 4 * cubic
    return floor[:, None] + [-1, 0, 1, 2], np.where(distance <= 1, near, far)


def _sampled(x: Tensor, axis: int, indices: np.ndarray, weights: np.ndarray) -> Tensor:
    """Weighted sum of the taps along one axis; a tap outside reads the edge."""
    inside = torch.from_numpy(np.clip(indices, 0, x.shape[axis] - 1).astype(np.int64)).to(x.device)
    if weights.shape[1] == 1:
        return x.index_select(axis, inside[:, 0])
    factors = torch.from_numpy(weights).to(x.device, x.dtype)
    shape = [-1 if index == axis % x.dim() else 1 for index in range(x.dim())]
    taps = [x.index_select(axis, inside[:, tap]) * factors[:, tap].reshape(shape) for tap in range(weights.shape[1])]
    return torch.stack(taps).sum(0)
