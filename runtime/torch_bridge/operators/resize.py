"""Resize and Upsample, one axis after the other, from the coordinates that the ONNX standard defines."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_CUBIC_A = -0.75
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
}
_COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
    *("tf_crop_and_resize", "tf_half_pixel_for_nn"),
)


@operator("Resize", since=11, numbers=(1, 2, 3))
def resize(node: Node) -> Function:
    mode, coordinates = (
        node.text("mode", "nearest"),
        node.text("coordinate_transformation_mode", "half_pixel"),
    )
    if coordinates not in _COORDINATES:
        raise RefusedError(f"with coordinates {coordinates}")
    antialias, exclude = bool(node.integer("antialias")), bool(node.integer("exclude_outside"))
    if (antialias and mode == "nearest") or (exclude and mode != "cubic"):
        raise RefusedError(f"with {'antialias' if antialias else 'exclude_outside'} and mode {mode}")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    given, outside = node.integers("axes"), node.number("extrapolation_value", 0.0)
    rounding = node.text("nearest_mode", "round_prefer_floor")
    kernel = _Kernel(mode, node.number("cubic_coeff_a", _CUBIC_A), rounding, antialias, exclude)

    def run(
        x: Tensor,
        roi: list[float] | None = None,
        scales: list[float] | None = None,
        sizes: list[int] | None = None,
    ) -> Tensor:
        axes = list(range(x.dim())) if given is None else given
        if sizes and policy != "stretch":
            ratios = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
            scales = [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
            sizes = [int(scale * x.shape[axis] + 0.5) for axis, scale in zip(axes, scales, strict=True)]
        elif sizes:
            scales = None
        cropped, dtype = [], x.dtype
        for index, axis in enumerate(axes):
            size = x.shape[axis]
            scale = float(scales[index]) if scales else sizes[index] / size if sizes else 1.0
            result = sizes[index] if sizes else int(np.floor(np.float32(size) * np.float32(scale)))
            region = (
                (roi[index], roi[index + len(axes)]) if roi and coordinates == "tf_crop_and_resize" else None
            )
            if scale != 1 or result != size or region not in (None, (0, 1)):
                at = _sources(result, size, scale, coordinates, region)
                x = _sampled(x, axis, *kernel.taps(at, size, scale))
                if region is not None:
                    cropped.append((axis, (at < 0) | (at > size - 1)))
        for axis, missing in cropped:
            where = (
                torch.from_numpy(missing)
                .to(x.device)
                .reshape([-1 if index == axis % x.dim() else 1 for index in range(x.dim())])
            )
            x = torch.where(where, outside, x)
        return _whole(x, dtype)

    return run


@operator("Upsample", since=7)
def upsample_7(node: Node) -> Function:
    run, scales = upsample(node), [float(scale) for scale in node.attributes["scales"]]
    return lambda x: run(x, scales)


@operator("Upsample", since=9, numbers=(1,))
def upsample(node: Node) -> Function:
    kernel = _Kernel(node.text("mode", "nearest"), rounding="floor")

    def run(x: Tensor, scales: list[float]) -> Tensor:
        dtype = x.dtype
        for axis, scale in enumerate(scales):
            size = x.shape[axis]
            if scale != 1:
                at = _sources(int(np.floor(np.float32(size) * np.float32(scale))), size, scale, "asymmetric")
                x = _sampled(x, axis, *kernel.taps(at, size, scale))
        return _whole(x, dtype)

    return run


def _sources(
    result: int, size: int, scale: float, mode: str, region: tuple[float, float] | None = None
) -> np.ndarray:
    """Coordinate in the input of every element of one output axis, float32 [result]."""
    index = np.arange(result, dtype=np.float32)
    if mode == "tf_crop_and_resize":
        start, end = region or (0.0, 1.0)
        if result == 1:
            return np.full(1, (start + end) * (size - 1) / 2, np.float32)
        return np.float32(start * (size - 1)) + index * np.float32((end - start) * (size - 1) / (result - 1))
    if mode == "tf_half_pixel_for_nn":
        return (index + np.float32(0.5)) / np.float32(scale)
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


@dataclass(frozen=True)
class _Kernel:
    mode: str
    cubic: float = _CUBIC_A
    rounding: str = "round_prefer_floor"
    antialias: bool = False
    exclude: bool = False
    """Whether taps outside the input weigh nothing, and the others more instead."""

    def __post_init__(self) -> None:
        if self.mode not in ("nearest", "linear", "cubic"):
            raise RefusedError(f"with mode {self.mode}")

    def taps(self, at: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Input indices, which may lie outside, and weights of each output element, both [result, taps]."""
        if self.mode == "nearest":
            return _ROUNDINGS[self.rounding](at)[:, None], np.ones((len(at), 1))
        floor = np.floor(at)
        part = (at - floor)[:, None]
        reach, stretch = 1 if self.mode == "linear" else 2, 1.0
        if self.antialias and scale < 1:  # the filter covers what one output element stands for
            stretch, reach = scale, int(np.ceil(reach / scale))
        offsets = np.arange(1 - reach, reach + 1)
        distance = np.abs(part - offsets) * stretch
        weights = np.maximum(1 - distance, 0) if self.mode == "linear" else self.cubic_weights(distance)
        indices = floor[:, None] + offsets
        if self.exclude:
            weights = np.where((indices >= 0) & (indices < size), weights, 0)
        if self.exclude or stretch < 1:
            weights = weights / weights.sum(1, keepdims=True)
        return indices, weights

    def cubic_weights(self, distance: np.ndarray) -> np.ndarray:
        """Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, equation 4, with
        `cubic` for its -1/2.
        """
        near = ((self.cubic + 2) * distance - (self.cubic + 3)) * distance**2 + 1
        far = (
            (self.cubic * distance - 5 * self.cubic) * distance + 8 * self.cubic
        ) * distance - 4 * self.cubic
        return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _sampled(x: Tensor, axis: int, indices: np.ndarray, weights: np.ndarray) -> Tensor:
    """Weighted sum of the taps along one axis; a tap outside reads the edge."""
    inside = torch.from_numpy(np.clip(indices, 0, x.shape[axis] - 1).astype(np.int64)).to(x.device)
    if weights.shape[1] == 1:
        return x.index_select(axis, inside[:, 0])
    factors = torch.from_numpy(weights).to(x.device, x.dtype if x.is_floating_point() else torch.float32)
    shape = [-1 if index == axis % x.dim() else 1 for index in range(x.dim())]
    taps = [
        x.index_select(axis, inside[:, tap]) * factors[:, tap].reshape(shape)
        for tap in range(weights.shape[1])
    ]
    return torch.stack(taps).sum(0)


def _whole(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Interpolated whole numbers: cut off to their type and its range, as ONNX Runtime does."""
    if x.dtype == dtype or dtype.is_floating_point:
        return x
    return x.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)
