"""Inputs and what ONNX Runtime computes of them, for the device to compare its engine with.

An array has a number in the file, `0.in1`: the second input of the first call. A name may be anything, also a path.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import bfloat16, ort

FILE = "reference.npz"
MOST_CALLS = 8
MOST_BYTES = 64 << 20

Arrays = Mapping[str, np.ndarray]
Sizes = Mapping[str, Sequence[Sequence[int]]]
"""Input -> least, tuned and greatest shape."""


def calls(feeds: Arrays, profiles: Sizes) -> list[dict[str, np.ndarray]]:
    """The feeds in calls of the sizes that the engine is tuned for, as many as there are samples for; one call as it
    is, where it is no batch of such calls but within the sizes. Empty if the engine does not take the feeds.
    """
    tuned = {
        name: tuple(profiles[name][1]) if name in profiles else array.shape for name, array in feeds.items()
    }
    if all(array.shape == tuned[name] for name, array in feeds.items()):
        return [dict(feeds)]
    if all(array.ndim and array.shape[1:] == tuned[name][1:] for name, array in feeds.items()):
        counts, sizes = {len(array) for array in feeds.values()}, {shape[0] for shape in tuned.values()}
        if len(counts) == len(sizes) == 1:
            count, size = counts.pop(), sizes.pop()
            whole = (
                np.arange(max(count // size, 1) * size) % count
            )  # fewer samples than the tuned batch are repeated
            order = whole.reshape(-1, size)[:MOST_CALLS]
            return [{name: array[rows] for name, array in feeds.items()} for rows in order]
    if all(_within(array.shape, profiles.get(name)) for name, array in feeds.items()):
        return [dict(feeds)]
    return []


def _within(shape: Sequence[int], sizes: Sequence[Sequence[int]] | None) -> bool:
    if sizes is None:
        return True
    least, _, greatest = sizes
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True)
    )


def made_up(session: Any, profiles: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal values, zeros for integers, of the sizes that the engine is tuned for."""
    feeds = ort.random_feeds(session)
    generator = np.random.default_rng(seed)
    return {
        name: _filled(generator, tuple(profiles[name][1]) if name in profiles else array.shape, array.dtype)
        for name, array in feeds.items()
    }


def _filled(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


def write(path: Path, session: Any, stored: Sequence[Arrays]) -> dict[str, Any]:
    """Runs the calls and writes inputs and outputs, the first call in any case and others up to 64 MB. Returns what
    the description says of them.
    """
    inputs, outputs = (
        [value.name for value in values] for values in (session.get_inputs(), session.get_outputs())
    )
    arrays: dict[str, Any] = {}
    size = 0
    for number, feeds in enumerate(stored):
        found = ort.run(session, feeds)
        call = {f"{number}.in{index}": bfloat16.storable(feeds[name]) for index, name in enumerate(inputs)}
        call |= {f"{number}.out{index}": found[name] for index, name in enumerate(outputs)}
        size += sum(array.nbytes for array in call.values())
        if number and size > MOST_BYTES:
            break
        arrays |= call
    with replacing(path) as file:
        np.savez(file, **arrays)  # NumPy before 2.2 stores any keyword as an array, allow_pickle too
    return {"file": path.name, "inputs": inputs, "outputs": outputs, "by": f"ONNX Runtime {ort.VERSION}"}
