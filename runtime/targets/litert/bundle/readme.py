"""The README of a .tflite file, for the developer of the application that runs it."""

from collections.abc import Mapping

from onnx_lathe.runtime.targets.bundle import readme as parts
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.bundle.writing import Written

LITERT = "2.1.4"
"""Of Android's package: the version whose documentation the texts below follow."""
UNCHECKED = (
    "The examples are generated. Lathe's tests compile C++ of their kind, against LiteRT's headers where there are any; Kotlin, and these "
    "very files, are unchecked."
)
ORDER = (
    "Inputs and outputs are in this order, under these names, in the file's signature `serving_default`. Shapes are the file's, the outermost "
    "dimension first."
)
APIS = """Interpreter computes on the processor, with XNNPACK. CompiledModel also runs on GPUs and NPUs, and falls back layer by layer; it takes the
sizes that the file states, where the Interpreter takes a batch, or another open size, by `resize`."""
LAYOUTS = """
Pictures are scaled by interpolation between neighbours, without the smoothing of Pillow: pixels of much larger pictures differ a little from
those that the network was judged on."""
KOTLIN = """1. `{file}` goes into `app/src/main/assets`. In `build.gradle.kts`:

       android {{ androidResources {{ noCompress += "tflite" }} }}
       dependencies {{ implementation("com.google.ai.edge.litert:litert:{version}") }}

   It needs Android 6 (API level 23).
2. Take one of `{kotlin_interpreter}` and `{kotlin_compiled}` into the application, under a package of your own, and make a `Network` once: loading packs
   the weights."""
CPP = """- Interpreter, `{cpp_interpreter}`: unpack the package `com.google.ai.edge.litert:litert` 1.4 (an .aar is a .zip file); its `headers` and
  `jni/arm64-v8a/libtensorflowlite_jni.so` are the C API. Elsewhere, build `libtensorflowlite_c` of https://github.com/google-ai-edge/LiteRT.
- CompiledModel, `{cpp_compiled}`: `litert_cc_sdk.zip` of https://github.com/google-ai-edge/LiteRT/releases, with `libLiteRt.so` of the package, is a folder
  for CMake's `add_subdirectory`; link `litert_cc_api`, `android` and `log`. Its headers need Clang, as the NDK has.

An application defines `MODEL_NO_MAIN`, includes one of the two, and calls `load` once, then `run` for each input."""


def readme(names: Mapping[str, str], written: Written) -> str:
    """Markdown. `names`: of the files by kind."""
    file = written.files[0].name
    known = {"file": file, "version": LITERT, **names}
    below = " ".join(filter(None, (ORDER, parts.bounded(written.inputs), parts.classes(written.classes))))
    return "\n\n".join(
        (
            f"# {file}: a network for LiteRT (TensorFlow Lite)",
            f"{parts.files(_files(file, names))}\n\n{UNCHECKED}",
            f"{parts.ports(written.inputs, written.outputs)}\n\n{below}{_quantized([*written.inputs, *written.outputs])}",
            _pixels(written),
            f"## Which API\n\n{APIS}",
            f"## Android, Kotlin\n\n{KOTLIN.format(**known)}",
            f"## C++\n\n{CPP.format(**known)}",
            parts.measured(written.verified, names),
        )
    )


def _files(file: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (file, "the network"),
        (
            names["json"],
            "inputs, outputs, preprocessing, SHA-256 of the file; the application does not need it",
        ),
        (names["kotlin_interpreter"], "Kotlin for Android that loads, feeds and reads it by the Interpreter"),
        (names["kotlin_compiled"], "the same by CompiledModel"),
        (names["cpp_interpreter"], "C++ by the Interpreter's C API"),
        (names["cpp_compiled"], "C++ by CompiledModel"),
        *parts.example_rows(names, "ai-edge-litert"),
    ]


def _quantized(ports: list[Port]) -> str:
    if not any(port.is_quantized for port in ports):
        return ""
    return " The examples turn real numbers into the integers of the file, and back."


def _pixels(written: Written) -> str:
    found = parts.pixels(
        written.pixels,
        "`from_rgba` (`fromBitmap` in Kotlin)",
        "swap `rgba[0]` and `rgba[2]` (`red` and `blue`)",
    )
    return found if isinstance(written.pixels, str) else found + LAYOUTS
