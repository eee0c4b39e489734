"""`onnx_lathe.gate`: the Python twin of the command `optimize gate`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import arguments, compare
from onnx_lathe.optimizer.judging.evidence import parse_confidence, parse_tolerances
from onnx_lathe.optimizer.judging.judgement import Judgement
from onnx_lathe.optimizer.recipe import Recipe, override
from onnx_lathe.optimizer.ui import Calling
from onnx_lathe.runtime.data import DataSpec

UserFunction = str | Callable[..., Any]
"""FILE.py:FUNCTION, or a function of this process."""


def gate(
    base: str | Path,
    candidate: str | Path,
    gates: str | Sequence[str],
    *,
    data: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    metrics: Mapping[str, UserFunction] | None = None,
    postprocess: UserFunction | None = None,
    symbols: str | None = None,
    confidence: float | str | None = None,
    tolerance: str | Sequence[str] | None = None,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Judgement:
    """A verdict per gate, such as "top1 drop <= 0.5%", on a candidate against a base model.

    What comes back is a sequence of verdicts; `passed` says whether all are. `metrics`: functions
    (answers, labels) -> a number or one per sample, by the names that gates call them. `postprocess`: a function
    (outputs) -> one answer per sample. `confidence`: such as 0.95 or "95%": the worse end of this interval is judged.
    `tolerance`: as --tolerance takes it. `fix_inputs`: values that inputs of either are always fed with, such as
    {"sr": 16000}.

    Raises UsageError for a gate that cannot be judged, and ModelError or DataError as loading does.
    """
    for name, value in (("preprocess", preprocess), ("classes", classes), ("symbols", symbols)):
        if not isinstance(value, str | None):
            raise UsageError(f"{name} takes a text, not {type(value).__name__}")
    if not isinstance(metrics, Mapping | None):
        raise UsageError(f"metrics takes functions by name, not {type(metrics).__name__}")
    recipe = override(
        Recipe(),
        gates=arguments.texts(gates, "gates"),
        eval=data,
        preprocess=preprocess,
        classes=classes,
        metrics=metrics,
        postprocess=postprocess,
        symbols=symbols,
        confidence=None if confidence is None else parse_confidence(str(confidence)),
        tolerances=None if tolerance is None else parse_tolerances(arguments.texts(tolerance, "tolerance")),
        fix_inputs=fix_inputs,
    )
    return compare.compare(
        arguments.path(base, "base"), arguments.path(candidate, "candidate"), recipe, Calling(progress)
    )
