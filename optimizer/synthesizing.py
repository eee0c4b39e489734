"""Calibration without data: made-up samples, on the scale that the network was trained with as far as its file tells.

A file does not say whether pixels come as 0 to 255, 0 to 1 or normalized. --preprocess does; else the statistics of the
batch normalizations tell, where the file still has them, and the scale among the usual ones that comes nearest is taken,
and then moved while that brings it nearer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import onnx

from onnx_lathe.errors import DataError, ModelError, UsageError
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.runtime.data import InputSpec
from onnx_lathe.runtime.data.preprocess import Preprocess, parse
from onnx_lathe.runtime.data.synthetic import SyntheticSource, asked_for, open_synthetic
from onnx_lathe.runtime.running.normalizations import Likeness, Remembered

USUAL = {
    "pixels 0..255": Preprocess((0.0,), (1.0,)),
    "pixels 0..1": Preprocess((0.0,), (255.0,)),
    "pixels -1..1": Preprocess((127.5,), (127.5,)),
    "mean 0 and deviation 1": Preprocess((117.0,), (62.0,)),
    "pixels less their mean": Preprocess((117.0,), (1.0,)),
}
COMPARED, COMPARED_PIXELS = 16, 16 * 224 * 224
"""Samples that are run for each scale, the same ones: so many, fewer of large pictures, and at least LEAST."""
LEAST = 4
STEPS = 4
"""Of moving the scale, at most."""
GAIN = 0.9
"""What a step must leave of the distance, at most: less is the chance of few samples."""


def check_roles(recipe: Recipe) -> None:
    """Raises UsageError where made-up samples are to train or to judge."""
    for option, spec in (("data", recipe.data), ("train", recipe.train), ("eval", recipe.eval)):
        if asked_for(spec):
            raise UsageError(
                f"--{option} {spec}: made-up samples calibrate, they cannot train or judge a network; give --calibration {spec}"
            )


def synthesized(
    spec: str, inputs: Sequence[InputSpec], recipe: Recipe, model: onnx.ModelProto | None
) -> SyntheticSource:
    """The source, whose warnings say what was made up and how far it is from what is known of the training data.

    Raises DataError for inputs that nothing can be made up for, ModelError if ONNX Runtime cannot run the model.
    """
    asked = parse(recipe.preprocess)
    source = open_synthetic(spec, inputs, asked)
    remembered = None if model is None else Remembered(model)
    likeness = None if remembered is None else _fed(remembered, source)
    said = "--preprocess gives the scale"
    if not asked.scales and source.pictures:
        said = "the scale is a guess, mean 0 and deviation 1; give --preprocess"
        found = (
            None if remembered is None or not remembered.stored else _nearest(spec, inputs, asked, remembered)
        )
        if found is not None:
            source, likeness, said = found
    elif not source.pictures:
        said = "the scale is a guess, mean 0 and deviation 1"
    source.warnings = (
        *source.warnings,
        f"calibration on {source.count} made-up samples, as there are no real ones: {said}. {_told(likeness, remembered)} "
        "Judge the result on real samples before it is used",
    )
    return source


def _compared(source: SyntheticSource) -> int:
    largest = max(math.prod(sorted(shape)[-2:]) for shape in source.samples.values())
    return min(max(COMPARED_PIXELS // max(largest, 1), LEAST), COMPARED, source.count)


def _fed(remembered: Remembered, source: SyntheticSource) -> Likeness | None:
    """Raises DataError that says what was fed, where the model does not take it."""
    try:
        return remembered.likeness(source, _compared(source))
    except ModelError as error:
        sizes = ", ".join(f"'{name}' {'x'.join(map(str, shape))}" for name, shape in source.samples.items())
        advice = 'give their size with --preprocess "resize=HxW", or ' if source.pictures else "give "
        raise DataError(
            f"synthetic: the network does not take made-up samples ({sizes}); {advice}samples with --calibration FILE: {error}"
        ) from error


def _nearest(
    spec: str, inputs: Sequence[InputSpec], asked: Preprocess, remembered: Remembered
) -> tuple[SyntheticSource, Likeness, str] | None:
    """The scale whose samples look most like those of the training; None where none can be compared with them."""

    def tried(scale: Preprocess) -> tuple[float, SyntheticSource, Likeness | None]:
        source = open_synthetic(spec, inputs, replace(asked, mean=scale.mean, std=scale.std))
        likeness = remembered.likeness(source, _compared(source))
        return (float("inf") if likeness is None else likeness.distance), source, likeness

    found = {name: tried(options) for name, options in USUAL.items()}
    name = min(found, key=lambda one: found[one][0])
    best, options, moved = found[name], USUAL[name], False
    for _ in range(STEPS):
        (mean,), (std,) = options.mean, options.std
        near = [Preprocess((mean,), (std * by,)) for by in (0.8, 1.25)]
        near += [Preprocess((mean + by,), (std,)) for by in (-15.0, 15.0)]
        candidates = [(tried(one), one) for one in near]
        candidate, at = min(candidates, key=lambda one: one[0][0])
        if not candidate[0] < GAIN * best[0]:
            break
        best, options, moved = candidate, at, True
    scale = f'as by --preprocess "mean={options.mean[0]:.4g} std={options.std[0]:.4g}"'
    _, source, likeness = best
    told = name if not moved else f"moved from {name}"
    said = f"the scale, {told}, {scale}, is what its batch normalizations tell"
    return None if likeness is None else (source, likeness, said)


def _told(likeness: Likeness | None, remembered: Remembered | None) -> str:
    if likeness is None and remembered is not None and remembered.stored:
        return "On these samples the network gives no numbers to compare with its batch normalizations' statistics."
    if likeness is None:
        return "The file has no statistics of the training data to compare them with."
    return (
        f"In {likeness.layers} batch normalizations channels differ from the training data's by {likeness.mean:.2f} deviations in "
        f"the mean and a factor of {likeness.factor:.2f} in the deviation (medians)."
    )
