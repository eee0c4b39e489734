"""Writes what lies beside a .tflite file."""

from pathlib import Path

from onnx_lathe.runtime.targets.bundle.writing import Written, write_bundle
from onnx_lathe.runtime.targets.litert.bundle import cpp, kotlin
from onnx_lathe.runtime.targets.litert.bundle.readme import readme
from onnx_lathe.version import VERSION

TARGET = "litert"


def bundle(written: Written) -> tuple[Path, ...]:
    """Writes the description, four examples, README, stored inputs and outputs and the script that verifies them, named
    model.litert.*, into the folder of the file. `written.files` is the .tflite file, its inputs and outputs have the
    names of its signature and the order of its subgraph. Returns all files that were written.
    """
    file = written.files[0].name
    title = f"{file}, written by Lathe {VERSION}"
    known = title, file, written.inputs, written.outputs, written.classes, written.pixels
    sources = {
        "kotlin_interpreter": ("interpreter.kt", kotlin.interpreter(*known)),
        "kotlin_compiled": ("compiled.kt", kotlin.compiled(*known)),
        "cpp_interpreter": ("interpreter.cpp", cpp.interpreter(*known)),
        "cpp_compiled": ("compiled.cpp", cpp.compiled(*known)),
    }
    return write_bundle(written, sources, lambda names: readme(names, written))
