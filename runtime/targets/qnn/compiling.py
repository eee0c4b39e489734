"""Compiles a model file for chips: strictly, so that nothing is left to the CPU in silence."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_lathe.errors import ModelError, TargetError, first_few
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.qnn import library
from onnx_lathe.runtime.targets.qnn.chips import Chip
from onnx_lathe.runtime.targets.qnn.context import (
    CONTEXT,
    TRACE_FOLDER,
    Left,
    left_behind,
    programs,
)
from onnx_lathe.runtime.targets.qnn.options import QnnConfig
from onnx_lathe.runtime.targets.qnn.process import QnnProcess
from onnx_lathe.runtime.targets.qnn.sizes import Shape, declared

LISTED = 3
SPLIT = (
    "a part of it is left to the CPU, at a node that neither ONNX Runtime nor QNN names; operators that ONNX Runtime makes "
    "of others, such as Mish, are some that may be left"
)


class RefusedError(TargetError):
    """Nodes that the chip does not take."""

    def __init__(self, left: Sequence[Left], chips: Sequence[Chip]) -> None:
        super().__init__(_said(left, chips))
        self.left = left


def compile_context(
    model: onnx.ModelProto, shapes: Mapping[str, Shape], folder: Path, options: QnnConfig
) -> onnx.ModelProto:
    """Writes CONTEXT, and its binary unless it embeds it, into `folder`, which is to be empty. Returns CONTEXT.

    Raises RefusedError with the nodes that would be left to the CPU, TargetError where the compiler fails otherwise, ends, or
    takes longer than the options allow.
    """
    sized = declared(model, shapes)
    source = folder / "source.onnx"
    model_file.save(sized, source)
    context = folder / CONTEXT
    if refusal := _refusal(source, folder, options, strict=True):
        left = left_behind(folder, sized, refusal.log) or _left_if_allowed(source, folder, options, sized)
        if left:
            raise RefusedError(left, options.chips)
        reason = SPLIT if any(text in refusal.reason for text in library.PARTLY) else refusal.reason
        raise TargetError(f"QNN does not compile the model: {reason}")
    if not context.is_file():
        raise TargetError("QNN compiled nothing, and did not say why")
    found = onnx.load(context, load_external_data=False)
    if len(found.graph.node) != programs(found):
        raise RefusedError(left_behind(folder, sized), options.chips)
    return found


def _left_if_allowed(source: Path, folder: Path, options: QnnConfig, model: onnx.ModelProto) -> list[Left]:
    """What it leaves to the CPU where it may: for versions that do not say it when they refuse."""
    with tempfile.TemporaryDirectory(prefix="again-", dir=folder) as again:
        refusal = _refusal(source, Path(again), options, strict=False)
        return left_behind(Path(again), model, "" if refusal is None else refusal.log)


@dataclass(frozen=True)
class _Refusal:
    reason: str
    log: str


def _refusal(source: Path, folder: Path, options: QnnConfig, strict: bool) -> _Refusal | None:
    """Compiles; None if that went well."""
    request = {
        "do": "compile",
        "model": str(source.resolve()),
        "entries": {
            "ep.context_enable": "1",
            "ep.context_file_path": str((folder / CONTEXT).resolve()),
            "ep.context_embed_mode": str(int(options.embed)),
            "session.disable_cpu_ep_fallback": str(int(strict)),
        },
        "options": {
            **library.provider_options(options.chips, options.vtcm_mb, options.optimization),
            "enable_framework_op_trace": "1",
            "framework_op_trace_dir": str((folder / TRACE_FOLDER).resolve()),
        },
    }
    process = QnnProcess(folder)
    try:
        process.ask(request, limit_s=options.time_limit)
        return None
    except ModelError as error:
        return _Refusal(str(error), process.log())
    finally:
        process.close()


def _said(left: Sequence[Left], chips: Sequence[Chip]) -> str:
    reasons: dict[str, list[str]] = {}
    for one in left:
        reasons.setdefault(one.reason or "stays on the CPU", []).append(str(one))
    listed = "; ".join(f"{first_few(nodes)}: {reason}" for reason, nodes in list(reasons.items())[:LISTED])
    more = f"; and {len(reasons) - LISTED} more reasons" if len(reasons) > LISTED else ""
    halfless = [chip.name for chip in chips if not chip.half]
    advice = (
        f"; {', '.join(halfless)} computes on integers alone: quantize all layers with int8"
        if halfless
        else ""
    )
    return (
        f"{'+'.join(chip.name for chip in chips)} does not compute {listed}{more}{advice}; "
        "optimize check MODEL --target qnn lists all"
    )
