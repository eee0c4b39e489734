"""What lies beside a package: its description, and the bundle of texts and stored examples, in the form that all targets share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.targets.bundle import classes
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.bundle.ports import Port, open_to, type_name
from onnx_lathe.runtime.targets.bundle.writing import Written, write_description
from onnx_lathe.runtime.targets.coreml.bundle.writing import bundle
from onnx_lathe.runtime.targets.coreml.convert import Conversion
from onnx_lathe.runtime.targets.coreml.convert import Port as ProgramPort
from onnx_lathe.runtime.targets.coreml.package import library

Call = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
"""Inputs, and what ONNX Runtime computes of them."""
PICTURE = "the package takes a picture, and scales its values itself"
FLOAT, HALF, QUANTIZED = 1e-3, 2e-2, 5e-2
"""By how much results on a Mac may be off: an assumption, since nothing of Core ML runs here."""


def write_beside(
    package: Path,
    written: Conversion,
    options: Any,
    choices: Mapping[str, Any],
    examples: Examples | None = None,
) -> tuple[Path, ...]:
    """Writes the description, and, if the options want it, Swift, the README and the examples with their script. These
    feed tensors: of a package that takes a picture there is the description alone. Returns all files that were written.
    """
    inputs, outputs = ([_shared(port) for port in ports] for ports in (written.inputs, written.outputs))
    pictures = options.image != "none"
    made = Written(
        "coreml",
        [package],
        inputs,
        outputs,
        PICTURE if pictures else pixels_of(options.preprocess, inputs),
        choices,
        classes.split(options.classes),
        examples=examples,
        libraries={"coremltools": str(library().__version__)},
    )
    if pictures or not options.bundle:
        return (write_description(made),)
    return bundle(made, options.deployment)


def _shared(port: ProgramPort) -> Port:
    """As the description has it."""
    shape = open_to(port.shape)
    bounded = None in shape and bool(port.least)
    known = onnx.helper.tensor_dtype_to_np_dtype(port.element) if port.element else None
    return Port(
        tensor=port.tensor,
        name=port.name,
        shape=shape,
        type=port.kind,
        axes=tuple(range(len(shape))),
        tensor_type=port.kind if known is None else type_name(known),
        tensor_shape=shape,
        declared=shape,
        least=tuple(map(int, port.least)) if bounded else (),
        greatest=tuple(map(int, port.greatest)) if bounded else (),
    )


def examples_of(written: Conversion, calls: Sequence[Call], quantized: bool, half: bool) -> Examples:
    """Calls, with how far Core ML's results may be off."""
    allowed = QUANTIZED if quantized else HALF if half else FLOAT
    measure = "length" if quantized else "largest"
    return Examples(list(calls), measure, {port.tensor: allowed for port in written.outputs}, {})
