"""Timing in ncnn for passes: the model is lowered as that target does it, in memory."""

from collections.abc import Callable

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.lowering import lowered
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
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
    config = find(TARGET).Config(profile=profile)  # type: ignore[call-arg]
    context = Context(placement=target.placed(config) or CANONICAL)

    def apply(instance: Pass, before: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
        graph = import_model(before)
        report = instance.apply(graph, context)
        return export_model(graph), report

    return lowered(target, config, model, apply)[0]
