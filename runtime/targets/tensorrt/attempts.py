"""A build in up to two attempts: with the profiles that are wanted, and with those of one sample where the caller left the
batch open.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.runtime.targets.core.base import Progress
from onnx_lathe.runtime.targets.tensorrt import process
from onnx_lathe.runtime.targets.tensorrt.shapes import USUAL_BATCH, Profile

OF_BRANCHES = ("graphScope", "IConditionalOutputLayer")
"""In what TensorRT says of a branch that it cannot build, without its name."""
OF_SIZES = ("reshape changes volume", "Dimensions are")
"""In what it says of sizes that do not fit, which may be those of a body that would never run at them."""
Profiles = list[dict[str, list[list[int]]]]
"""For each profile the least, the tuned and the greatest shape of each dynamic input."""


def attempt(
    request: dict[str, Any], alone: Profiles, scratch: Path, progress: Progress, time_limit_s: float | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The worker's, and what to say of it. Where the profiles of the usual batch are refused, it is asked with those
    `alone`, of one sample: an exporter may have frozen it into a branch or a shape.
    """
    started = time.monotonic()
    try:
        return process.ask(request, scratch, progress, time_limit_s), ()
    except TargetError as refused:
        left = None if time_limit_s is None else time_limit_s - (time.monotonic() - started)
        if alone == request["profiles"] or (left is not None and left <= 0):
            raise
        request["profiles"] = alone
        try:
            found = process.ask(request, scratch, progress, left)
        except TargetError:
            raise refused from None
        return found, (
            f"the engine takes one sample at a time, since a batch of {USUAL_BATCH} is refused: {refused}",
        )


def plain(found: list[dict[str, Profile]]) -> Profiles:
    return [
        {name: [list(shape) for shape in (one.least, one.tuned, one.greatest)] for name, one in each.items()}
        for each in found
    ]


def with_branches(error: TargetError, branches: Mapping[str, Sequence[str]]) -> TargetError:
    """The error, which names the model's If and Loop nodes where TensorRT speaks of them without their names.
    `branches`: each with the inputs whose values decide it.
    """
    fed = [f"input '{name}'" for name in dict.fromkeys(name for names in branches.values() for name in names)]
    signs = (*OF_BRANCHES, *OF_SIZES) if fed else OF_BRANCHES
    if not branches or not any(sign in str(error) for sign in signs):
        return error
    said = f"{error}; TensorRT has to know the conditions of {first_few(list(branches))} when it builds"
    if not any(sign in str(error) for sign in OF_BRANCHES):
        chosen = first_few([name for name, names in branches.items() if names])
        said = f"{error}; all bodies of {chosen} are built, for the same sizes"
    if fed:
        return TargetError(
            f"{said}, and they follow from the values of {first_few(fed)}: make a constant of that by "
            "--fix-input NAME=VALUE, and pass fold takes them out"
        )
    return TargetError(f"{said}: pass fold, and sizes that are fixed, may take them out")
