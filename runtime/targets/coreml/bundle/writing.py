"""Writes what lies beside an .mlpackage."""

from pathlib import Path

from onnx_lathe.runtime.targets.bundle.writing import Written, write_bundle
from onnx_lathe.runtime.targets.coreml.bundle import swift
from onnx_lathe.runtime.targets.coreml.bundle.readme import readme
from onnx_lathe.version import VERSION

TARGET = "coreml"


def bundle(written: Written, lowest: str) -> tuple[Path, ...]:
    """Writes the description, the Swift example, README, stored inputs and outputs and the script that verifies them on a
    Mac, named model.coreml.*, into the folder of the package. `written.files` is the .mlpackage; `lowest`: the oldest of
    coremltools' targets that runs it, such as iOS16. Returns all files that were written. Raises ValueError for an input
    or output of a type that Core ML has not.
    """
    file = written.files[0].name
    title = f"{file}, written by Lathe {VERSION}"
    text = swift.example(title, file, written.inputs, written.outputs, written.classes, written.pixels)
    return write_bundle(written, {"example": ("swift", text)}, lambda names: readme(names, written, lowest))
