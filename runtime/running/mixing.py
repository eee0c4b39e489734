"""Networks in which the samples of a batch have to do with one another, such as decibels relative to the
loudest sample, or integers whose scale is found at run time for the whole batch.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.data import Batch
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.scores import is_float

SAMPLES = 8
"""Spread over the batch: neighbours, such as frames of a film, may be nearly equal."""
TOLERANCE = 1e-3
"""Of an output's largest value: kernels add in another order for another batch, which moves it by less."""


def mixed_output(session: onnxruntime.InferenceSession, batch: Batch) -> str | None:
    """The first float output whose values for a sample change with the other samples of its batch; None if
    there is none, or if there is one batch alone that the model takes.
    """
    if batch.per_call or batch.count < 2:
        return None
    if fixed_batch([value.shape for value in session.get_inputs()]) is not None:
        return None
    rows = np.unique(np.linspace(0, batch.count - 1, min(SAMPLES, batch.count)).astype(int))
    together = ort.run(session, {name: array[rows] for name, array in batch.inputs.items()})
    try:
        alone = [
            ort.run(session, {name: array[row : row + 1] for name, array in batch.inputs.items()})
            for row in rows
        ]
    except ModelError:  # it does not run with one sample: nobody can judge them one by one
        return None
    return next(
        (name for name, value in together.items() if _is_mixed(value, [one[name] for one in alone])), None
    )


def _is_mixed(together: np.ndarray, alone: Sequence[np.ndarray]) -> bool:
    if not is_float(together):
        return False
    if all(one.shape == together.shape for one in alone):  # no row of its own for each sample
        return any(differ(together, one) for one in alone)
    if together.shape[:1] != (len(alone),) or any(one.shape != (1, *together.shape[1:]) for one in alone):
        return False
    return differ(together, np.concatenate(alone))


def differ(wanted: np.ndarray, found: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Whether two arrays of one shape differ by more than so much of the largest value."""
    wide = wanted.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    return not np.allclose(wide, found.astype(np.float64), rtol=0, atol=tolerance * largest, equal_nan=True)
