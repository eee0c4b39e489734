"""The C++ example: it loads this network on Android, iOS or a desktop, feeds it, and times its convolutions there."""

import json
from collections.abc import Sequence
from string import Template

from onnx_lathe.runtime.targets.bundle.literals import c_float, c_string, comment, lines
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.ncnn.bundle.describe import Chosen
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
        param=c_string(names[0]),
        weights=c_string(names[1]),
        inputs=lines(_port(port) for port in inputs),
        outputs=lines(_port(port) for port in outputs),
        convolutions=lines(_convolution(one) for one in convolutions),
        half="true" if half else "false",
        from_rgba=_no_pixels(pixels) if isinstance(pixels, str) else _from_rgba(pixels),
    )


def _port(port: Port) -> str:
    """{blob, dims, w, h, d, c, integers}: 0 where a size is open, 1 where the blob has no such dimension."""
    sizes = [port.shape[axis] or 0 for axis in port.axes] or [1]
    w, h, c = sizes[-1], sizes[-2] if len(sizes) > 1 else 1, sizes[0] if len(sizes) > 2 else 1
    d = sizes[1] if len(sizes) == 4 else 1
    said = "x".join("?" if size is None else str(size) for size in port.shape)
    integers = "false" if port.floats else "true"  # what the blob holds, whatever the model's type
    return f"{{{c_string(port.blob)}, {len(sizes)}, {w}, {h}, {d}, {c}, {integers}}} /* {comment(port.tensor)}: {said} */"


def _convolution(one: Chosen) -> str:
    named = c_string(json.dumps(one.node))
    return f"{{{named}, {c_string(one.own)}, {c_string(one.bottom)}, {c_string(one.top)}}}"


def _no_pixels(reason: str) -> str:
    return f"// Pixels: the application makes the values of the inputs itself ({comment(reason)}).\n"


def _from_rgba(pixels: Pixels) -> str:
    kind = "PIXEL_RGBA" if pixels.order == "RGBA" else f"PIXEL_RGBA2{pixels.order}"
    return Template(FROM_RGBA).substitute(
        input=comment(pixels.input),
        order=pixels.order,
        mean=", ".join(c_float(value) for value in pixels.mean),
        norm=", ".join(c_float(value) for value in pixels.norm),
        made=_made(pixels, kind),
    )


def _made(pixels: Pixels, kind: str) -> str:
    if pixels.made is None or pixels.resized is None:
        return Template(KEPT).substitute(kind=kind)
    height, width = pixels.made
    if isinstance(pixels.resized, int):
        return Template(ROI_SHORT).substitute(kind=kind, side=pixels.resized, height=height, width=width)
    stretched = {"resized_height": pixels.resized[0], "resized_width": pixels.resized[1]}
    return Template(ROI_STRETCHED).substitute(kind=kind, height=height, width=width, **stretched)
