"""The Swift example for iOS and macOS: it loads this network, feeds it and reads its outputs by Core ML."""

from collections.abc import Iterable, Sequence
from string import Template

from onnx_lathe.runtime.targets.bundle.literals import comment, swift_float, swift_string
from onnx_lathe.runtime.targets.bundle.pixels import Pixels, framed
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.coreml.bundle import swift_template as text

TYPES = {"float16": "float16", "float32": "float32", "float64": "double", "int32": "int32"}
"""What an MLMultiArray holds; Core ML's programs have no other inputs and outputs."""
CHANNELS = {
    "RGB": ("red", "green", "blue"),
    "RGBA": ("red", "green", "blue", "Float(pixels[4 * at + 3])"),
    "GRAY": ("(0.299 * red + 0.587 * green + 0.114 * blue)",),
}


ORDERS = {"RGBA": "RGBA (colours are multiplied by alpha, as Core Graphics draws them)"}


class _Text(Template):
    """Names begin with @: Swift's own begin with $."""

    delimiter = "@"


def example(
    title: str,
    file: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    classes: Sequence[str],
    pixels: Pixels | str,
) -> str:
    """The source text. `file`: the name of the .mlpackage. Raises ValueError for a type that no MLMultiArray holds."""
    name = file.removesuffix(".mlpackage")
    made = isinstance(pixels, Pixels)
    places = ", ".join(f"values{place or ''}" for place in range(len(inputs)))
    return _Text(text.EXAMPLE).substitute(
        title=comment(title),
        compiled=comment(name),
        example="fromImage(picture)!" if made else places,
        graphics="import CoreGraphics\n" if made else "",
        file=swift_string(name),
        inputs=_lines(map(_port, inputs)),
        outputs=_lines(map(_port, outputs)),
        classes=_lines(map(swift_string, classes)),
        pixels=_from_image(pixels, inputs) if isinstance(pixels, Pixels) else _none(pixels),
    )


def _lines(entries: Iterable[str]) -> str:
    return "".join(f"        {entry},\n" for entry in entries)


def _port(port: Port) -> str:
    if port.type not in TYPES or port.is_quantized:
        raise ValueError(f"'{port.name}' holds {port.type}, and Core ML has no such input or output")
    sizes = ", ".join(str(size or 0) for size in port.shape)
    return f"Port(name: {swift_string(port.name)}, sizes: [{sizes}], type: .{TYPES[port.type]}) /* {comment(port.tensor)} */"


def _none(reason: str) -> str:
    return f"\n// Pixels: the application makes the values of the inputs itself ({comment(reason)}).\n"


def _from_image(pixels: Pixels, inputs: Sequence[Port]) -> str:
    last = inputs[0].axes[-1] == pixels.channel_axis
    channels = CHANNELS[pixels.order]
    place = f"{len(channels)} * at + @c" if last else "@c * rows * columns + at"
    rows = (
        _Text(_Text(text.CHANNEL).safe_substitute(index=place, channel=channel)).substitute(c=number)
        for number, channel in enumerate(channels)
    )
    return _Text(text.FROM_IMAGE).substitute(
        input=comment(pixels.input),
        order=ORDERS.get(pixels.order, pixels.order),
        framed=comment(framed(pixels)),
        mean=", ".join(map(swift_float, pixels.mean)),
        norm=", ".join(map(swift_float, pixels.norm)),
        alpha="premultipliedLast" if pixels.order == "RGBA" else "noneSkipLast",
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
