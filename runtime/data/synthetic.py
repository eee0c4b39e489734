"""Samples that are made up, for a network that comes without any data: they calibrate, and nothing else.

    synthetic        128 samples
    synthetic:300    so many

Pictures are noise with the spectrum of photographs, amplitudes that fall as 1/f (Field, "Relations between the statistics
of natural images and the response properties of cortical cells", 1987), under disks that cover one another, which have
edges as photographs do ("dead leaves", Lee, Mumford and Huang 2001; Baradad et al., "Learning to see by looking at
noise", 2021): ranges that noise alone finds are too narrow (benchmarks/without_data.md). Luminance is far ahead of colour,
and means and contrasts differ from picture to picture. Other tensors fall as 1/f along all axes behind their channels, and
rows of numbers are white.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.preprocess import Feed, Preprocess, bind, channel_axis, is_float
from onnx_lathe.runtime.data.source import Batch, IndexedSource, fingerprint
from onnx_lathe.runtime.files.signature import InputSpec, takes_one_sample

SAMPLES = 128
MOST_SAMPLES = 100_000
OPEN_SIDE = 224
"""Height and width of pictures whose size the model leaves open."""
OPEN_LENGTH = 64
"""Of other axes that it leaves open."""
SEED = 1987

MEAN, DEVIATION = 117.0, 62.0
"""Of photographs' pixels, 0..255 (ImageNet's)."""
COLOUR = np.array([[1.0, 0.22, 0.07], [1.0, 0.0, -0.14], [1.0, -0.22, 0.07]])
"""Luminance, blue against yellow, and green against magenta, with their shares of the deviation."""
UNIT = Preprocess((MEAN,), (DEVIATION,))
"""Pixels to mean 0 and deviation 1."""

_SPEC = re.compile(r"synthetic(?::(.*))?")


def asked_for(spec: object) -> TypeGuard[str]:
    """Whether data is named by the word; the path of a file or folder that is there is a path."""
    # os.path: a name that is too long for a file is none
    return isinstance(spec, str) and _SPEC.fullmatch(spec) is not None and not os.path.exists(spec)


class SyntheticSource(IndexedSource):
    """Made-up samples for a model with these inputs; `options` is how pixels 0..255 become what it takes."""

    labelled = False

    def __init__(self, count: int, inputs: Sequence[InputSpec], options: Preprocess) -> None:
        """Raises DataError for an input that nothing can be made up for."""
        if not inputs:
            raise DataError("synthetic: the model has no inputs that samples could be made up for")
        self.count, self.inputs, self.options = count, tuple(inputs), options
        dims = [tuple("?" if dim is None else dim for dim in spec.shape) for spec in inputs]
        for spec in inputs:
            if not is_float(spec.dtype):
                raise DataError(
                    f"synthetic: nothing can be made up for input '{spec.name}', which takes {spec.dtype}; give samples with "
                    f"--calibration FILE, or make it a constant with --fix-input {spec.name}=VALUE"
                )
            if not spec.ranked or takes_one_sample(dims):
                raise DataError(
                    f"synthetic: input '{spec.name}' has no axis of samples as the others have; give samples with --calibration FILE"
                )
        self.samples = {spec.name: _sample(spec, options) for spec in inputs}
        self._feeds: dict[str, Feed] = {
            spec.name: bind(
                spec, self.samples[spec.name], np.dtype(np.uint8), options, "synthetic", moves=False
            )
            for spec in inputs
            if _is_picture(spec)
        }
        self.pictures = bool(self._feeds)
        self.fingerprint = fingerprint(f"synthetic {count} {SEED} {inputs} {options}".encode())
        self.description = f"{count} made-up samples"
        opened = [spec for spec in inputs if None in spec.shape[1:]]
        self.notes = [
            f"synthetic: input '{spec.name}' leaves sizes open; samples are {'x'.join(map(str, self.samples[spec.name]))}"
            + (', by --preprocess "resize=HxW"' if options.frames and spec.name in self._feeds else "")
            for spec in opened
        ]

    def read(self, rows: np.ndarray) -> Batch:
        made: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self.inputs}
        for row in rows:
            for place, spec in enumerate(self.inputs):
                generator = np.random.default_rng((SEED, place, int(row)))
                made[spec.name].append(
                    _made(spec, self.samples[spec.name], generator, self._feeds.get(spec.name))
                )
        return Batch({name: np.stack(values) for name, values in made.items()})

    def identities(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows, np.uint64)


def open_synthetic(spec: str, inputs: Sequence[InputSpec], options: Preprocess) -> SyntheticSource:
    """Raises DataError for a count that is none, or an input that nothing can be made up for."""
    found = _SPEC.fullmatch(spec)
    text = None if found is None else found[1]
    count = SAMPLES if text is None else int(text) if re.fullmatch(r"\d{1,9}", text) else 0
    if not 0 < count <= MOST_SAMPLES:
        raise DataError(
            f"{spec}: behind the colon stands how many samples are made up, 1 to {MOST_SAMPLES:,}"
        )
    scaled = options if options.scales else replace(options, mean=UNIT.mean, std=UNIT.std)
    return SyntheticSource(count, inputs, scaled)


def _is_picture(spec: InputSpec) -> bool:
    axis = channel_axis(spec)
    return axis is not None and spec.shape[axis + 1] in (1, 3, 4)


def _sample(spec: InputSpec, options: Preprocess) -> tuple[int, ...]:
    """Shape of one, with sizes for those that the model leaves open: pictures have them from --preprocess."""
    dims = spec.shape[1:]
    if not _is_picture(spec):
        return tuple(OPEN_LENGTH if dim is None else dim for dim in dims)
    resized = (options.resize, options.resize) if isinstance(options.resize, int) else options.resize
    height, width = options.crop or resized or (OPEN_SIDE, OPEN_SIDE)
    sizes = (height, width, 3) if channel_axis(spec) == 2 else (3, height, width)
    return tuple(size if dim is None else dim for size, dim in zip(sizes, dims, strict=True))


def _made(
    spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator, feed: Feed | None
) -> np.ndarray:
    if feed is None:
        return _coloured(generator, shape, tuple(range(1, len(shape)))).astype(spec.dtype)
    channels_last = channel_axis(spec) == 2
    channels, height, width = (shape[2], *shape[:2]) if channels_last else shape
    pixels = picture(generator, channels, height, width)
    values: np.ndarray = feed((pixels.transpose(1, 2, 0) if channels_last else pixels)[None])[0]
    return values


def picture(generator: np.random.Generator, channels: int, height: int, width: int) -> np.ndarray:
    """Pixels u8 [channels, height, width]; a fourth channel is opaque."""
    planes = 0.4 * _coloured(generator, (3, height, width), (1, 2)) + leaves(generator, height, width)
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True).clip(1e-6)
    planes[1:] += generator.normal(size=(2, 1, 1))  # a tint
    mean = generator.normal(MEAN, 0.45 * DEVIATION)
    contrast = 0.85 * DEVIATION * math.exp(generator.normal(0, 0.3))
    shades = planes[:1] if channels == 1 else np.tensordot(COLOUR, planes, 1)
    pixels: np.ndarray = np.clip(np.rint(mean + contrast * shades), 0, 255).astype(np.uint8)
    return np.concatenate([pixels, np.full_like(pixels[:1], 255)]) if channels == 4 else pixels


def leaves(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Disks [3, height, width] of even shades that cover one another, radii by a power law of exponent 3."""
    planes = np.zeros((3, height, width))
    side = max(height, width)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    least = max(side / 60, 1.0)
    for _ in range(300):
        radius = min(least / math.sqrt(max(generator.random(), 1e-4)), side / 3)
        top, left = generator.uniform(-radius, height + radius), generator.uniform(-radius, width + radius)
        shade = generator.normal(size=(3, 1))
        rows_in = slice(max(int(top - radius), 0), max(int(top + radius) + 1, 0))
        columns_in = slice(max(int(left - radius), 0), max(int(left + radius) + 1, 0))
        inside = (rows[rows_in] - top) ** 2 + (columns[:, columns_in] - left) ** 2 <= radius**2
        planes[:, rows_in, columns_in][:, inside] = shade
    return planes


def _coloured(generator: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Noise of mean 0 and deviation 1 over `axes`, whose amplitudes fall as 1/f along them; white without any."""
    white = generator.standard_normal(shape)
    axes = tuple(axis for axis in axes if shape[axis] > 1)
    if not axes:
        return white
    squares = np.zeros([1] * len(shape))
    for axis in axes:
        frequencies = np.fft.fftfreq(shape[axis])
        squares = squares + (frequencies**2).reshape([-1 if one == axis else 1 for one in range(len(shape))])
    with np.errstate(divide="ignore"):
        gain = np.where(squares > 0, 1 / np.sqrt(squares), 0.0)
    found = np.fft.ifftn(np.fft.fftn(white, axes=axes) * gain, axes=axes).real
    deviation: np.ndarray = found.std(axis=axes, keepdims=True)
    result: np.ndarray = found / deviation.clip(1e-12)
    return result
