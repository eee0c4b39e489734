"""Stored images -> what the graph takes: layout, scaling, and the size of pictures from a folder.

    x: a stored pixel, 0..255     y = (x - mean) / std, per channel of the graph's input

`scale=1/255` is short for `mean=0 std=255`. Options are joined by spaces or ";":

    "scale=1/255"
    "mean=125.3,123.0,113.9 std=63.0,62.1,66.7"
    "mean=123.7,116.3,103.5; std=58.4,57.1,57.4; resize=256; crop=224; layout=nhwc"

`mean` and `std` are in grey levels and hold one number or one per channel. `layout` is that of stored
arrays and is needed only where shapes do not tell. `resize` and `crop` are for image folders, and mean what
torchvision's Resize and CenterCrop mean on Pillow images (bilinear, antialiased):

| given | picture |
|---|---|
| resize=256, crop=224 | the shorter side becomes 256, then the middle 224x224 is taken |
| resize=256 | the shorter side becomes 256, then the middle 256x256 is taken |
| crop=224 | the shorter side becomes 224, then the middle 224x224 is taken |
| resize=48x320 | stretched to height 48 and width 320, whatever its shape was |
| resize=64, crop=48x320 | as the first; where the picture is smaller than the crop, black is added |
| neither | stretched to the height and width of the model's input |
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import ml_dtypes
import numpy as np

from onnx_lathe.errors import DataError, UsageError, nearest
from onnx_lathe.runtime.files.signature import InputSpec

OPTIONS = ("scale", "mean", "std", "layout", "resize", "crop")
LAYOUTS = ("nchw", "nhwc")
_IMAGE_CHANNELS = (1, 3, 4)
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d)?(/[\d.]+)?")

Sample = tuple[int, ...]
"""Shape of one sample, without the batch axis."""


@dataclass(frozen=True)
class Preprocess:
    """A parsed --preprocess. `mean` and `std` are empty when pixels are not to be scaled at all."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str | None = None
    resize: int | tuple[int, int] | None = None
    """Of the shorter side, or height and width."""
    crop: tuple[int, int] | None = None
    """Height and width."""

    @property
    def scales(self) -> bool:
        return bool(self.mean)

    @property
    def frames(self) -> bool:
        """Whether it says how large pictures become."""
        return self.resize is not None or self.crop is not None


@dataclass(frozen=True)
class Feed:
    """Turns stored batches [N, *sample] into batches that the graph takes; made by `bind`."""

    dtype: np.dtype
    arrange: Callable[[np.ndarray], np.ndarray]
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """A new contiguous array of the graph's dtype. Scaling is done in float32 (float64 for a float64
        input).
        """
        values = self.arrange(stored)
        if self.mean is None or self.std is None:
            return np.ascontiguousarray(values, dtype=self.dtype)
        scaled = values.astype(self.mean.dtype)
        scaled -= self.mean
        scaled /= self.std
        return np.ascontiguousarray(scaled, dtype=self.dtype)


def parse(text: str | None) -> Preprocess:
    """Reads the value of --preprocess; None or "" is no preprocessing. Raises UsageError that names the
    option.
    """
    values: dict[str, str] = {}
    for item in filter(None, re.split(r"[\s;,]+(?=[A-Za-z_]\w*\s*=)|;", (text or "").strip())):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(
                f"--preprocess: '{item.strip()}' is not name=value; options are {', '.join(OPTIONS)}"
            )
        if name not in OPTIONS:
            raise UsageError(
                f"--preprocess has no option '{name}'{nearest(name, OPTIONS) or '; there are ' + ', '.join(OPTIONS)}"
            )
        if name in values:
            raise UsageError(f"--preprocess names {name} twice; keep one")
        values[name] = value
    layout = values["layout"].lower() if "layout" in values else None
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--preprocess: layout is nchw or nhwc, not '{values['layout']}'")
    return Preprocess(*_normalization(values), layout, *_sizes(values))


def bind(
    spec: InputSpec,
    sample: Sample,
    stored: np.dtype,
    options: Preprocess,
    where: str,
    pixels: bool = False,
    moves: bool = True,
) -> Feed:
    """How stored arrays of this dtype and sample shape become the graph's input.

    Bytes for a float input are scaled, and so are floats that the caller knows to be `pixels` 0..255; other
    floats are fed as they are. `where` names the data in messages. Without `moves`, the sample's shape has been
    found to fit. Raises DataError if dtype or shape do not fit, or if bytes come without scaling.
    """
    arrange, arranged = _arrangement(spec, sample, options.layout, where) if moves else (_as_stored, sample)
    if is_float(spec.dtype) and (stored == np.uint8 or pixels):
        if not options.scales:
            raise DataError(
                f'{where} is uint8, the model takes {spec.dtype}: give --preprocess "scale=1/255", or "scale=1" for 0..255'
            )
        work = np.float64 if spec.dtype == np.float64 else np.float32
        mean, std = (
            _per_channel(spec, arranged, values, where).astype(work) for values in (options.mean, options.std)
        )
        return Feed(spec.dtype, arrange, mean, std)
    alike = (is_float(stored) and is_float(spec.dtype)) or (is_integer(stored) and is_integer(spec.dtype))
    if stored != spec.dtype and not alike:
        raise DataError(
            f"{where} is {stored}, the model takes {spec.dtype}; convert it with .astype('{spec.dtype}')"
        )
    return Feed(spec.dtype, arrange)


def channel_axis(spec: InputSpec) -> int | None:
    """Axis of one sample that holds image channels, from the graph's shape: 0 for [C, H, W], 2 for [H, W,
    C]; None otherwise.
    """
    if len(spec.shape) != 4:
        return None
    first, last = spec.shape[1] in _IMAGE_CHANNELS, spec.shape[3] in _IMAGE_CHANNELS
    return 2 if last and not first else 0


def _arrangement(
    spec: InputSpec, sample: Sample, layout: str | None, where: str
) -> tuple[Callable[[np.ndarray], np.ndarray], Sample]:
    """The move of axes that makes a sample fit the graph, and the sample's shape after it."""
    axis = channel_axis(spec)
    moves: list[tuple[Callable[[np.ndarray], np.ndarray], Sample]] = []
    if axis is not None and len(sample) == 3:
        height_first = (sample[2], sample[0], sample[1]) if axis == 0 else (sample[1], sample[2], sample[0])
        source, target = (-1, 1) if axis == 0 else (1, -1)
        wanted = None if layout is None else layout == ("nchw" if axis == 0 else "nhwc")
        if wanted is not False:
            moves.append((_as_stored, sample))
        if wanted is not True and (spec.shape[axis + 1] is not None or wanted is False):
            moves.append((partial(np.moveaxis, source=source, destination=target), height_first))
    elif axis is not None and len(sample) == 2:
        moves.append((partial(np.expand_dims, axis=axis + 1), (1, *sample) if axis == 0 else (*sample, 1)))
    else:
        moves.append((_as_stored, sample))
    fitting = [(move, shape) for move, shape in moves if fits(shape, spec.shape[1:])]
    if not fitting:
        raise DataError(
            f"{where} has samples of shape {show(sample)}, but the model's input '{spec.name}' takes {show(spec.shape[1:])}"
        )
    if len(fitting) > 1 and max(sample) > 1:
        raise DataError(
            f'{where}: samples of shape {show(sample)} fit as nchw and as nhwc; say which with --preprocess "layout=..."'
        )
    return fitting[0]


def _as_stored(batch: np.ndarray) -> np.ndarray:
    return batch


def fits(sample: Sample, wanted: tuple[int | None, ...]) -> bool:
    return len(sample) == len(wanted) and all(
        need in (None, have) for have, need in zip(sample, wanted, strict=True)
    )


def show(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _per_channel(spec: InputSpec, arranged: Sample, values: tuple[float, ...], where: str) -> np.ndarray:
    """Broadcasts against [N, *arranged]."""
    if len(values) == 1:
        return np.array(values[0])
    axis = channel_axis(spec)
    channels = None if axis is None else arranged[axis]
    if channels != len(values):
        have = "no channel axis" if channels is None else f"{channels} channels"
        raise DataError(
            f"{where}: --preprocess gives {len(values)} values per channel, but the model's input '{spec.name}' has {have}"
        )
    return np.array(values).reshape([-1 if axis == position else 1 for position in range(len(arranged))])


def _normalization(values: dict[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), equally long or one of length 1; both empty if nothing scales."""
    if "scale" in values:
        if "mean" in values or "std" in values:
            raise UsageError(
                "--preprocess: scale is short for mean=0 std=1/scale; give either scale, or mean and std"
            )
        scale = _numbers("scale", values["scale"])
        if min(scale) <= 0:
            raise UsageError(f"--preprocess: scale must be above 0, not {values['scale']}")
        return (0.0,), tuple(float(1 / number) for number in scale)
    if "mean" not in values and "std" not in values:
        return (), ()
    mean, std = _numbers("mean", values.get("mean", "0")), _numbers("std", values.get("std", "1"))
    if min(std) <= 0:
        raise UsageError(f"--preprocess: std must be above 0, not {values['std']}")
    if 1 < len(mean) != len(std) > 1:
        raise UsageError(
            f"--preprocess: mean has {len(mean)} values and std {len(std)}; give as many, or one"
        )
    if max(std) < 1 and max(mean) <= 1:
        grey = " ".join(
            f"{name}={','.join(f'{float(255 * x):.4g}' for x in numbers)}"
            for name, numbers in (("mean", mean), ("std", std))
        )
        raise UsageError(
            f'--preprocess: mean and std are those of pixels 0..255, these look like 0..1; write "{grey}"'
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _numbers(name: str, text: str) -> list[Fraction]:
    """Numbers as exact fractions, so that 1/255 is divided by 255 and not multiplied by a rounded number."""
    try:
        if all(_NUMBER.fullmatch(part.strip()) for part in text.split(",")):
            return [Fraction(*map(Fraction, part.split("/"))) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):  # two decimal points, or a division by 0
        pass
    raise UsageError(
        f"--preprocess: {name} takes numbers such as 0.5, 1/255 or 125.3,123.0,113.9, not '{text}'"
    )


def _sizes(values: Mapping[str, str]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """(resize, crop). Raises UsageError for sizes that do not go together."""
    resize, crop = (_pixels(name, values[name]) if name in values else None for name in ("resize", "crop"))
    if crop is None:
        return resize if resize is None or len(resize) == 2 else resize[0], None
    window = (crop[0], crop[-1])
    if resize is None:
        if window[0] != window[1]:
            raise UsageError(
                f"--preprocess: crop={values['crop']} is not square; say what is cropped, such as resize=256"
            )
        return None, window
    large = (
        resize[0] >= min(window) if len(resize) == 1 else resize[0] >= window[0] and resize[1] >= window[1]
    )
    if not large:
        raise UsageError(
            f"--preprocess: resize={values['resize']} is smaller than crop={values['crop']}; make resize at least as large"
        )
    return (resize[0], resize[1]) if len(resize) == 2 else resize[0], window


def _pixels(name: str, text: str) -> tuple[int] | tuple[int, int]:
    """One number, or height and width."""
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise UsageError(
            f"--preprocess: {name} takes a number of pixels such as 224, or height x width such as 48x320, not '{text}'"
        )
    height, width = found.groups()
    return (int(height),) if width is None else (int(height), int(width))


def is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def is_integer(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.integer)
