"""Writes what lies beside a network's two files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.runtime.targets.bundle import classes
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.bundle.writing import Written, write_bundle, write_description
from onnx_lathe.runtime.targets.ncnn.bundle.describe import Chosen, convolutions
from onnx_lathe.runtime.targets.ncnn.bundle.example import example
from onnx_lathe.runtime.targets.ncnn.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.ncnn.bundle.readme import readme
from onnx_lathe.runtime.targets.ncnn.convert import Conversion
from onnx_lathe.runtime.targets.ncnn.running import package
from onnx_lathe.runtime.targets.ncnn.session import shared
from onnx_lathe.version import VERSION


def bundle(
    param: Path,
    network: Conversion,
    model: onnx.ModelProto,
    options: Any,
    verified: Mapping[str, Any] | None = None,
    examples: Examples | None = None,
) -> tuple[Path, ...]:
    """Writes the description of the network in `param` and the .bin file beside it and, if the options want it, the
    example and the README. `verified`: what came of the comparison with ONNX Runtime, `examples`: what was compared.
    Returns all files that there are now.
    """
    chosen = convolutions(network.layers, model, options.profile)
    written = Written(
        target="ncnn",
        files=[param, param.with_suffix(".bin")],
        inputs=[shared(port) for port in network.inputs],
        outputs=[shared(port) for port in network.outputs],
        pixels=pixels_of(options.preprocess, network.inputs),
        classes=classes.split(options.classes),
        choices={
            "storage": options.storage,
            "profile": options.profile,
            "convolutions": [one.as_json() for one in chosen],
        },
        verified=verified,
        examples=examples,
        libraries={"ncnn": str(package().__version__)},
    )
    if not options.bundle:
        return *written.files, write_description(written)
    halves = options.profile != "arm64-fp32" and bool((verified or {}).get("fits_float16", True))
    files = {"param": param.name, "bin": param.with_suffix(".bin").name}
    text = _example(written, network, chosen, halves)
    made = write_bundle(
        written,
        {"example": ("example.cpp", text)},
        lambda names: readme({**files, **names}, written, len(chosen), (options.profile, options.storage)),
    )
    return *written.files, *made


def _example(written: Written, network: Conversion, chosen: Sequence[Chosen], halves: bool) -> str:
    param, weights = (path.name for path in written.files)
    title = f"{param}, written by Lathe {VERSION}"
    known = network.inputs, network.outputs, chosen, written.pixels, written.classes
    return example(title, (param, weights), halves, *known)
