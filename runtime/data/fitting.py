"""How arrays of samples fit a model: row by row of a batch, or one call of the model for each sample.

| array of an input [d0, d1, ...] | a sample is |
|---|---|
| [samples, d1, ...] | a row of a batch; where each sample is a call, a batch of one |
| [samples, d0, d1, ...] | what one call feeds |
| [] or [1], if the input is one number | the same for all samples |

Each sample is a call where arrays have the second form, and in any form where the inputs of the model cannot hold
a batch along their first axes: [batch, n] beside [2, batch, 128], or beside a single number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.preprocess import Feed, Preprocess, Sample, bind, fits, show
from onnx_lathe.runtime.files.signature import ONE_NUMBER, InputSpec, takes_one_sample

ONE_CALL = "each sample is one call of the model"


@dataclass(frozen=True)
class Fit:
    """How the arrays of all inputs are read: `count` samples; `shared` inputs have one value for all of them."""

    per_call: bool
    count: int
    shared: frozenset[str]

    def samples(self, name: str, array: np.ndarray) -> np.ndarray:
        """The array with an axis of `count` samples in front."""
        return np.broadcast_to(array.reshape(()), self.count) if name in self.shared else array

    def note(self, inputs: Sequence[InputSpec]) -> str:
        """A sentence for the report; empty where samples are rows of a batch and nothing is doubtful."""
        if self.per_call:
            alike = "".join(f"; '{name}' is the same in all" for name in sorted(self.shared))
            return ONE_CALL + alike
        for spec in inputs:
            if spec.shape and (spec.shape[0] or 1) > 1:
                return (
                    f"{spec.shape[0]} samples are one call, as the model's input '{spec.name}' {show(spec.shape)} says; "
                    f"if its first axis is no batch, give {_whole(spec)}"
                )
        return ""


def fit(inputs: Sequence[InputSpec], shapes: Mapping[str, Sample], where: Callable[[str], str]) -> Fit:
    """How arrays of these shapes are read; `where` names one in messages. Raises DataError for an array without
    samples, or with another number of them than the first.
    """
    shared = {spec.name for spec in inputs if _is_shared(spec, shapes[spec.name])}
    counted = [spec for spec in inputs if spec.name not in shared]
    per_call = takes_one_sample([spec.shape for spec in inputs if spec.ranked]) or any(
        fits(shapes[spec.name][1:], spec.shape) for spec in counted if spec.ranked
    )
    for spec in counted:
        shape = shapes[spec.name]
        if not shape or shape[0] == 0:
            what = (
                "has no samples; its first axis counts them"
                if shape
                else "is a single number; its first axis has to count samples"
            )
            raise DataError(f"{where(spec.name)} {what}" + (f": give {_whole(spec)}" if per_call else ""))
        if per_call and not _fits_call(spec, shape):
            raise DataError(
                f"{where(spec.name)} has shape {show(shape)}, but each sample is one call of this model, whose input "
                f"'{spec.name}' takes {show(spec.shape)}; give {_whole(spec)}"
            )
    counts = {spec.name: shapes[spec.name][0] for spec in counted}
    count = next(iter(counts.values()), 1)
    for name, found in counts.items():
        if found != count:
            example = f"; '{name}' is {_whole(_named(inputs, name))}" if per_call else ""
            raise DataError(
                f"{where(name)} has {found} samples, but '{counted[0].name}' has {count}; all need as many{example}"
            )
    return Fit(per_call, count, frozenset(shared))


def without_samples(inputs: Sequence[InputSpec], shapes: Mapping[str, Sample]) -> bool:
    """Whether no array of these shapes that counts samples has any; `fit` refuses some with and some without."""
    counted = [shapes[spec.name] for spec in inputs if not _is_shared(spec, shapes[spec.name])]
    return bool(counted) and all(shape[:1] == (0,) for shape in counted)


def feed(
    fitted: Fit,
    spec: InputSpec,
    shape: Sample,
    stored: np.dtype,
    options: Preprocess,
    where: str,
    pixels: bool = False,
) -> Feed:
    """Turns stored batches of this input into what Batch.inputs holds. Raises DataError as `bind` does."""
    if spec.name in fitted.shared:
        ones = tuple(1 for _ in spec.shape) if fitted.per_call else ()
        bound = bind(spec, ones, stored, options, where, moves=False)
        return replace(bound, arrange=partial(_reshaped, each=ones))
    if not spec.ranked:
        return bind(spec, shape[1:], stored, options, where, pixels, moves=False)
    if not fitted.per_call:
        return bind(spec, shape[1:], stored, options, where, pixels)
    if fits(shape[1:], spec.shape):
        whole = InputSpec(spec.name, spec.dtype, (None, *spec.shape))
        return bind(whole, shape[1:], stored, options, where, pixels, moves=False)
    bound = bind(spec, shape[1:], stored, options, where, pixels)
    return replace(bound, arrange=partial(_as_batches_of_one, arrange=bound.arrange))


def _is_shared(spec: InputSpec, shape: Sample) -> bool:
    return spec.ranked and spec.shape in ONE_NUMBER and len(shape) <= 1 and math.prod(shape) == 1


def _fits_call(spec: InputSpec, shape: Sample) -> bool:
    """Whether samples are calls, or look like rows of a batch, which `bind` knows more of."""
    if not spec.ranked or fits(shape[1:], spec.shape):
        return True
    return bool(spec.shape) and spec.shape[0] in (None, 1) and len(shape) <= len(spec.shape)


def _whole(spec: InputSpec) -> str:
    if not spec.shape:
        return "[samples], or one number for all samples"
    whole, row = (
        ", ".join(["samples", *("?" if size is None else str(size) for size in shape)])
        for shape in (spec.shape, spec.shape[1:])
    )
    return f"[{whole}]" + (f", or [{row}] for batches of one" if spec.shape[0] in (None, 1) else "")


def _named(inputs: Sequence[InputSpec], name: str) -> InputSpec:
    return next(spec for spec in inputs if spec.name == name)


def _reshaped(batch: np.ndarray, each: Sample) -> np.ndarray:
    return batch.reshape(-1, *each)


def _as_batches_of_one(batch: np.ndarray, arrange: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return arrange(batch)[:, None]
