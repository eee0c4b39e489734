"""The C++ example: it loads this network on Android, iOS or a desktop, feeds it, and times its convolutions there."""

import json
from collections.abc import Iterable, Sequence
from string import Template

from onnx_lathe.runtime.targets.ncnn.bundle.describe import Chosen
from onnx_lathe.runtime.targets.ncnn.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.ncnn.bundle.template import EXAMPLE, FROM_RGBA, KEPT, ROI_SHORT, ROI_STRETCHED
from onnx_lathe.runtime.targets.ncnn.convert import Port


def example(
    title: str,
    names: tuple[str, str],
    half: bool,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    convolutions: Sequence[Chosen],
    pixels: Pixels | str,
) -> str:
    """The source text. `names`: of the files .param and .bin. half: whether arithmetic may be in float16."""
    return Template(EXAMPLE).substitute(
        title=title,
        param=literal(names[0]),
        weights=literal(names[1]),
        inputs=_lines(_port(port) for port in inputs),
        outputs=_lines(_port(port) for port in outputs),
        convolutions=_lines(_convolution(one) for one in convolutions),
        half="true" if half else "false",
        from_rgba=_no_pixels(pixels) if isinstance(pixels, str) else _from_rgba(pixels),
    )


def literal(text: str) -> str:
    r"""A C string of UTF-8: bytes that are no plain ASCII as octal escapes, which end after three digits."""
    escaped = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return '"' + "".join(escaped) + '"'


def _lines(entries: Iterable[str]) -> str:
    return "".join(f"    {entry},\n" for entry in entries)


def _port(port: Port) -> str:
    """{blob, dims, w, h, d, c, integers}: 0 where a size is open, 1 where the blob has no such dimension."""
    sizes = [port.shape[axis] or 0 for axis in port.axes] or [1]
    w, h, c = sizes[-1], sizes[-2] if len(sizes) > 1 else 1, sizes[0] if len(sizes) > 2 else 1
    d = sizes[1] if len(sizes) == 4 else 1
    said = "x".join("?" if size is None else str(size) for size in port.shape)
    integers = "false" if port.floats else "true"  # what the blob holds, whatever the model's type
    return f"{{{literal(port.blob)}, {len(sizes)}, {w}, {h}, {d}, {c}, {integers}}} /* {comment(port.tensor)}: {said} */"


def _convolution(one: Chosen) -> str:
    named = literal(json.dumps(one.node))
    return f"{{{named}, {literal(one.own)}, {literal(one.bottom)}, {literal(one.top)}}}"


def comment(text: str) -> str:
    """Within /* */."""
    return text.replace("*/", "* /").replace("\\", "/").encode("ascii", "replace").decode()


def _no_pixels(reason: str) -> str:
    return f"// Pixels: the application makes the values of the inputs itself ({comment(reason)}).\n"


def _from_rgba(pixels: Pixels) -> str:
    kind = "PIXEL_RGBA" if pixels.order == "RGBA" else f"PIXEL_RGBA2{pixels.order}"
    return Template(FROM_RGBA).substitute(
        input=comment(pixels.input),
        order=pixels.order,
        mean=", ".join(_float(value) for value in pixels.mean),
        norm=", ".join(_float(value) for value in pixels.norm),
        made=_made(pixels, kind),
    )


def _float(value: float) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.f"


def _made(pixels: Pixels, kind: str) -> str:
    if pixels.made is None or pixels.resized is None:
        return Template(KEPT).substitute(kind=kind)
    height, width = pixels.made
    if isinstance(pixels.resized, int):
        return Template(ROI_SHORT).substitute(kind=kind, side=pixels.resized, height=height, width=width)
    stretched = {"resized_height": pixels.resized[0], "resized_width": pixels.resized[1]}
    return Template(ROI_STRETCHED).substitute(kind=kind, height=height, width=width, **stretched)
