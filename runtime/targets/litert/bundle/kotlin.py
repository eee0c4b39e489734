"""The two Kotlin examples for Android: each loads this network, feeds it and reads its outputs, by the Interpreter or by
CompiledModel.
"""

from collections.abc import Sequence
from string import Template

from onnx_lathe.runtime.targets.bundle.literals import c_float, comment, kotlin_string, lines
from onnx_lathe.runtime.targets.bundle.pixels import Pixels, framed
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.litert.bundle import kotlin_template as text

CHANNELS = {
    "RGB": ("red", "green", "blue"),
    "RGBA": ("red", "green", "blue", "(pixels[at] ushr 24 and 255).toFloat()"),
    "GRAY": ("(0.299f * red + 0.587f * green + 0.114f * blue)",),
}


class _Text(Template):
    """Names begin with @: Kotlin's own templates with $."""

    delimiter = "@"


def interpreter(
    title: str,
    file: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    classes: Sequence[str],
    pixels: Pixels | str,
) -> str:
    """The source text for the Interpreter. `file`: the model's name."""
    return _filled(text.INTERPRETER, title, file, inputs, outputs, classes, pixels)


def compiled(
    title: str,
    file: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    classes: Sequence[str],
    pixels: Pixels | str,
) -> str:
    """The source text for CompiledModel."""
    return _filled(text.COMPILED, title, file, inputs, outputs, classes, pixels)


def _filled(
    source: str,
    title: str,
    file: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    classes: Sequence[str],
    pixels: Pixels | str,
) -> str:
    ports = _Text(text.PORTS).substitute(
        file=kotlin_string(file),
        inputs=lines(_port(port) for port in inputs),
        outputs=lines(_port(port) for port in outputs),
        classes=lines(map(kotlin_string, classes)),
    )
    made = isinstance(pixels, Pixels)
    return _Text(source).substitute(
        title=comment(title),
        bitmap="\nimport android.graphics.Bitmap" if made else "",
        example="fromBitmap(bitmap)"
        if made
        else ", ".join(f"values{place or ''}" for place in range(len(inputs))),
        ports=ports,
        pixels=_from_bitmap(pixels, inputs) if isinstance(pixels, Pixels) else _none(pixels),
    )


def _port(port: Port) -> str:
    sizes = ", ".join(str(size or 0) for size in port.shape)
    scale, zero = c_float(port.scale or 0.0), port.zero_point or 0
    return (
        f"Port({kotlin_string(port.name)}, intArrayOf({sizes}), {kotlin_string(port.type)}, {scale}, {zero})"
        f" /* {comment(port.tensor)} */"
    )


def _none(reason: str) -> str:
    return f"\n// Pixels: the application makes the values of the inputs itself ({comment(reason)}).\n"


def _from_bitmap(pixels: Pixels, inputs: Sequence[Port]) -> str:
    last = inputs[0].axes[-1] == pixels.channel_axis
    channels = CHANNELS[pixels.order]
    place = f"{len(channels)} * at + @c" if last else "@c * rows * columns + at"
    rows = (
        _Text(_Text(text.CHANNEL).safe_substitute(index=place, channel=channel)).substitute(c=number)
        for number, channel in enumerate(channels)
    )
    return _Text(text.FROM_BITMAP).substitute(
        input=comment(pixels.input),
        order=pixels.order,
        framed=comment(framed(pixels)),
        mean=", ".join(map(c_float, pixels.mean)),
        norm=", ".join(map(c_float, pixels.norm)),
        channels=len(channels),
        frame=_frame(pixels),
        values="\n".join(rows),
    )


def _frame(pixels: Pixels) -> str:
    if pixels.made is None or pixels.resized is None:
        return text.KEPT
    rows, columns = pixels.made
    if isinstance(pixels.resized, int):
        return _Text(text.SHORT).substitute(rows=rows, columns=columns, side=pixels.resized)
    high, wide = pixels.resized
    return _Text(text.STRETCHED).substitute(rows=rows, columns=columns, high=high, wide=wide)
