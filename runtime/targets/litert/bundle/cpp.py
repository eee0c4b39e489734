"""The two C++ examples: each loads this network, feeds it and reads its outputs, by the Interpreter or by CompiledModel."""

from collections.abc import Sequence
from string import Template

from onnx_lathe.runtime.targets.bundle.literals import c_float, c_string, comment, lines
from onnx_lathe.runtime.targets.bundle.pixels import Pixels, framed
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.litert.bundle import cpp_template as text

TYPES = {
    "float32": "Float32",
    "int8": "Int8",
    "uint8": "UInt8",
    "int16": "Int16",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
}
"""Types that the example makes of floats; of others the application makes bytes."""


def interpreter(
    title: str,
    file: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    classes: Sequence[str],
    pixels: Pixels | str,
) -> str:
    """The source text for the C API of the Interpreter. `file`: the model's name."""
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
    ports = Template(text.PORTS).substitute(
        file=c_string(file),
        inputs=lines(_port(port) for port in inputs),
        outputs=lines(_port(port) for port in outputs),
        classes=lines(map(c_string, classes)),
        from_rgba=from_rgba(pixels, inputs),
    )
    return Template(source).substitute(
        title=comment(title), standard=text.STANDARD, ports=ports, main=text.MAIN
    )


def _port(port: Port) -> str:
    """{name, {sizes}, type, scale, zero_point}"""
    sizes = ", ".join(str(size or 0) for size in port.shape)
    kind = TYPES.get(port.type, "Other")
    scale, zero = c_float(port.scale or 0.0), port.zero_point or 0
    return (
        f"{{{c_string(port.name)}, {{{sizes}}}, Type::{kind}, {scale}, {zero}}} /* {comment(port.tensor)} */"
    )


def from_rgba(pixels: Pixels | str, inputs: Sequence[Port]) -> str:
    """The function that makes the input of a picture, or why there is none."""
    if isinstance(pixels, str):
        return f"// Pixels: the application makes the values of the inputs itself ({comment(pixels)}).\n"
    last = inputs[0].axes[-1] == pixels.channel_axis
    return Template(text.FROM_RGBA).substitute(
        input=comment(pixels.input),
        order=pixels.order,
        framed=comment(framed(pixels)),
        mean=", ".join(map(c_float, pixels.mean)),
        norm=", ".join(map(c_float, pixels.norm)),
        channels=len(pixels.mean),
        frame=_frame(pixels),
        index="((size_t)y * columns + x) * channels + c" if last else "((size_t)c * rows + y) * columns + x",
    )


def _frame(pixels: Pixels) -> str:
    if pixels.made is None or pixels.resized is None:
        return text.KEPT
    rows, columns = pixels.made
    if isinstance(pixels.resized, int):
        return Template(text.SHORT).substitute(rows=rows, columns=columns, side=pixels.resized)
    high, wide = pixels.resized
    return Template(text.STRETCHED).substitute(rows=rows, columns=columns, high=high, wide=wide)
