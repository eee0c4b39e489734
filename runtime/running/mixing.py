"""Networks in which the samples of a batch have to do with one another, such as decibels relative to the
loudest sample, or integers whose scale is found at run time for the whole batch.
"""

import numpy as np
import onnxruntime

from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.scores import is_float

TOLERANCE = 1e-3
"""Of an output's largest value: kernels add in another order for another batch, which moves it by less."""


def mixed_output(session: onnxruntime.InferenceSession, data: DataSource) -> str | None:
    """The first float output whose values for a sample change with the other sample of a batch of two; None if
    there is none, or the model's batch is fixed.
    """
    first = next(iter(data.batches(2)), None)
    if first is None or first.per_call or first.count < 2:
        return None
    if fixed_batch([value.shape for value in session.get_inputs()]) is not None:
        return None
    two = {name: array[:2] for name, array in first.inputs.items()}
    together = ort.run(session, two)
    alone = [ort.run(session, {name: array[row : row + 1] for name, array in two.items()}) for row in (0, 1)]
    return next((name for name, both in together.items() if _is_mixed(name, both, alone)), None)


def _is_mixed(name: str, both: np.ndarray, alone: list[dict[str, np.ndarray]]) -> bool:
    if not is_float(both) or both.ndim == 0 or len(both) != 2:
        return False
    rows = [one[name] for one in alone]
    if any(row.shape != (1, *both.shape[1:]) for row in rows):
        return False
    wanted, found = both.astype(np.float64), np.concatenate(rows).astype(np.float64)
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    return not np.allclose(wanted, found, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
