"""What a written file is tried on."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnx_lathe.runtime.targets.litert.sizing import Fitted

MOST_SAMPLES, MOST_WORK = 16, 1e9
"""Of the data, in one batch; as many as take so many multiplications together, one at least."""


def samples_of(
    fitted: Fitted, feeds: Mapping[str, np.ndarray], channels_last: Collection[str], work: float
) -> list[dict[str, np.ndarray]]:
    """Inputs to compare on: the data's first samples, where they have the sizes that the file was written for, else random
    ones; and random ones of other sizes, where some are open.

    channels_last: inputs that the file takes so, and the data has with channels first. work: multiplications of a sample.
    """
    sizes = fitted.sizes
    count = max(1, min(MOST_SAMPLES, int(MOST_WORK / max(work, 1.0)))) if fitted.batch else 1
    first: dict[str, np.ndarray] = {}
    for name, shape in sizes.first.items():
        value = np.moveaxis(feeds[name], 1, -1) if name in channels_last else feeds[name]
        one = value[:count] if shape[:1] == (1,) else value
        fits = one.ndim == len(shape) and one.shape[1:] == shape[1:] and (fitted.batch or one.shape == shape)
        first[name] = np.ascontiguousarray(one) if fits else _random(shape, value.dtype, 0)
    if (
        len({value.shape[:1] for value in first.values()}) > 1
    ):  # a batch of the data, and one that was made up
        first = {name: _first(value, sizes.first[name]) for name, value in first.items()}
    if not sizes.open:
        return [first]
    return [first, {name: _random(sizes.second[name], value.dtype, 1) for name, value in first.items()}]


def _first(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return value[:1] if shape[:1] == (1,) else value


def _random(shape: Sequence[int], dtype: np.dtype, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype) if np.issubdtype(dtype, np.floating) else np.zeros(shape, dtype)
