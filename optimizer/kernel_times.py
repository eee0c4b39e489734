"""Timing in ncnn for passes: the model is lowered as that target does it, in memory."""

from collections.abc import Callable

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.ncnn.timing import NetworkTimer, why_not

TARGET = "ncnn"


def require(instance: Pass) -> None:
    """Raises UsageError if this machine cannot time kernels for the pass's profile."""
    if reason := why_not(instance.config.profile):
        raise UsageError(f"{instance.name}(by=time): {reason}")


def kernel_timer(status: Callable[[str], None]) -> NetworkTimer:
    return NetworkTimer(_lowered, status)


def _lowered(model: onnx.ModelProto, profile: str) -> onnx.ModelProto:
    target = find(TARGET)()
    placement = target.placed(find(TARGET).Config(profile=profile)) or CANONICAL  # type: ignore[call-arg]
    graph = import_model(model)
    find_lowering(TARGET)().apply(graph, Context(placement=placement))
    return export_model(graph)
