"""Sampling of images at computed places: AffineGrid and GridSample."""

import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_MODES = {
    "linear": "bilinear",
    "cubic": "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest",
}
"""Of opset 20 and of opset 16 -> PyTorch."""


@operator("GridSample", since=16)
def grid_sample(node: Node) -> Function:
    mode, padding, corners = (
        _MODES[node.text("mode", "bilinear")],
        node.text("padding_mode", "zeros"),
        bool(node.integer("align_corners")),
    )
    if mode == "bicubic" and node.ranks[0] != 4:
        raise RefusedError("cubic, unless the model declares its input to have four dimensions")

    def run(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid.to(x.dtype), mode, padding, corners)

    return run


@operator("AffineGrid", since=20, numbers=(1,))
def affine_grid(node: Node) -> Function:
    corners = bool(node.integer("align_corners"))
    return lambda theta, size: F.affine_grid(theta, size, corners)
