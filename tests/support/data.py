"""The same 23 samples as an archive, as a function's batches and as pictures; and how they are read."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.data import Batch, DataSource, InputSpec, open_source

FLOAT = np.dtype(np.float32)
IMAGE = [InputSpec("image", FLOAT, (None, 1, 6, 4))]
TWO = [InputSpec("image", FLOAT, (None, 3)), InputSpec("ids", np.dtype(np.int32), (None,))]
COUNT = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 4), dtype=np.uint8)
PIXELS[0, 0, :2] = 0, 255
LABELS = np.arange(COUNT) % 5


def archive(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def loader(folder: Path, body: str) -> str:
    """A file with `pixels` [23, 6, 4], `labels` [23] and this body, whose function is `batches`."""
    np.savez(folder / "stored.npz", pixels=PIXELS, labels=LABELS)
    source = f"import numpy as np\nstored = np.load({str(folder / 'stored.npz')!r})\npixels, labels = stored['pixels'], stored['labels']\n"
    (folder / "loader.py").write_text(source + body)
    return f"{folder / 'loader.py'}:batches"


def pictures(folder: Path, classes: int = 0) -> str:
    """One PNG per sample, in class folders or flat."""
    for number, pixels in enumerate(PIXELS):
        place = folder / "pictures" / (f"class{number % classes}" if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return str(folder / "pictures")


def joined(source: DataSource, size: int, seed: int | None = None) -> Batch:
    batches = list(source.batches(size, seed))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    names = batches[0].inputs
    return Batch(
        {name: np.concatenate([b.inputs[name] for b in batches]) for name in names},
        np.concatenate(labels) if labels else None,
    )


def refusal(
    spec: str, inputs: list[InputSpec] = IMAGE, text: str | None = "scale=1/255", classes: int | None = None
) -> str:
    with pytest.raises(LatheError) as refused:
        for _ in open_source(spec, inputs, text, classes).batches(8):
            pass
    message = str(refused.value)
    assert "\n" not in message
    return message


def keyboard_interrupt_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which the user interrupts at this call of it."""
    calls = itertools.count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return interrupted
