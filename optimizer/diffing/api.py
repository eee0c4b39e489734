"""What the commands `diff` and `debug` do, returning values; nothing here prints or exits."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_lathe.optimizer import arguments
from onnx_lathe.optimizer.diffing import debug as debugging
from onnx_lathe.optimizer.diffing import diff as comparing
from onnx_lathe.optimizer.diffing.diff import Model
from onnx_lathe.optimizer.recipe import Recipe, override
from onnx_lathe.optimizer.ui import Calling
from onnx_lathe.runtime.data import DataSpec
from onnx_lathe.runtime.threads import limited

if TYPE_CHECKING:
    from onnx_lathe.optimizer.diffing.debug import Debugged
    from onnx_lathe.optimizer.diffing.diff import Diff


def diff(
    base: Model,
    candidate: Model,
    *,
    data: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    at: float = comparing.PART_DB,
    samples: int = comparing.SAMPLES,
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> "Diff":
    """What two models have different, and how far each tensor of the candidate is from the base's, in the order of
    execution.

    base, candidate: models in memory, ONNX files, packed or not, or what a target wrote, of which outputs alone are
    compared. data: random values without. at: dB of signal to noise below which they part. samples: at most so many
    of the data, evenly spread.

    Raises ModelError, DataError, TargetError or UsageError with one line.
    """
    recipe = override(Recipe(), eval=data, preprocess=preprocess, classes=classes)
    with limited(threads):
        return comparing.diff_models(base, candidate, recipe, Calling(progress), at=at, samples=samples)


def debug(
    base: Model,
    candidate: Model,
    out: str | Path,
    *,
    data: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    top: int = 1,
    at: float | None = None,
    samples: int = debugging.SAMPLES,
    threads: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> "Debugged":
    """The layers of the candidate that are wrong by themselves, worst first, each written to the new folder `out` as
    a model with its input and the outputs that the base has: `top` of them, in `out`/1, `out`/2, ... if more than 1.

    at: a layer below so many dB when it is fed with the base's values is to blame; without it, one that is 18 dB
    below the median layer, between 15 and 60 dB. A candidate that ONNX Runtime refuses is cut down to the node that
    it fails at.

    Raises as `diff` does, and UsageError for a folder that holds something.
    """
    place = arguments.path(out, "out")
    recipe = override(Recipe(), eval=data, preprocess=preprocess, classes=classes)
    with limited(threads):
        return debugging.debug_models(
            base, candidate, recipe, Calling(progress), place, top=top, at=at, samples=samples
        )
