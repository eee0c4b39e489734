"""What the user should hear of the finished model's speed, measured."""

import tempfile
from pathlib import Path

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.build import lower
from onnx_lathe.optimizer.measuring import is_quantized, medians, time_pair
from onnx_lathe.optimizer.run import Run
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.core.registry import find

NOTED_RATIO = 1.03
"""Of the original's time."""
NOTED_CHANGE = 1.1
"""A step that makes the model slower by less has changed nothing that these short measurements can tell."""
TARGET = "ort"


def note_slower_steps(run: Run) -> None:
    """Names `latency` among what a step made worse."""
    before = 1.0
    for step in run.record.steps:
        if "base_latency" not in step.quality:
            continue
        ratio = step.quality["latency"] / step.quality["base_latency"]
        if ratio > NOTED_CHANGE * before and "latency" not in step.worse:
            step.worse.append("latency")
        before = ratio


def note_slow_integers(run: Run) -> None:
    """Warns of an INT8 model that is slower than the original here, with what the target for this runtime gives.

    The canonical form of INT8 is for other targets to start from; ONNX Runtime computes it in float.
    """
    final = run.record.final()
    if "base_latency" not in final or any(target.timed for target, _ in run.targets):
        return
    ratio = final["latency"] / final["base_latency"]
    if not is_quantized(run.model) or ratio <= NOTED_RATIO:
        return
    run.ui.status(f"timing what --target {TARGET} would give")
    try:
        told = f"built with --target {TARGET} it takes {_told_ratio(run)}"
    except LatheError as error:
        told = f"what --target {TARGET} would give could not be measured: {error}"
    run.record.warnings.append(
        f"in ONNX Runtime on this processor the INT8 model takes {ratio:.2g}x the original's time: its form is what other "
        f"targets start from; {told}"
    )
    run.ui.note(f"warning: {run.record.warnings[-1]}")


def _told_ratio(run: Run) -> str:
    """Which layers the target leaves in float is found out by many measurements as it is built, and only makes the model
    faster: all on integers tell enough here.
    """
    most = _ratio_as_target(run)
    told = f"at most {most:.2g}x"
    return told if most <= 1 else f"{told}, less where layers that are slower on integers stay in float"


def _ratio_as_target(run: Run) -> float:
    """Time of the model as the target has it with all layers on integers, over the original's."""
    target = find(TARGET)()
    context = run.services.context(f"target {TARGET}")
    lowered, _ = lower(target, target.Config(), run.model, context)
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        path = Path(folder) / "model.onnx"
        model_file.save(lowered, path)
        base, here = medians(time_pair(run.roles.sample, run.original_session(), path))
    return here / base
