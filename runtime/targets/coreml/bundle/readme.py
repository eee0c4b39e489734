"""The README of an .mlpackage, for the developer of the application that runs it."""

from collections.abc import Mapping

from onnx_lathe.runtime.targets.bundle import readme as parts
from onnx_lathe.runtime.targets.bundle.writing import Written

UNCHECKED = "The example is generated, and was not compiled: that needs a Mac."
NOT_RUN = """The package was written, and its weights were read back and compared; it was not run: that needs a Mac."""
XCODE = """1. Add `{file}` to the target: Xcode compiles it, and shows its inputs and outputs.
2. Add `{example}`, and make a `Network` once: loading takes longer than a run. It needs {system}.
3. Where layers run, Xcode's performance report of the package tells, on a device of your choice: none of that was measured here."""
SYSTEMS = {
    "ios15": "iOS 15 or macOS 12",
    "ios16": "iOS 16 or macOS 13",
    "ios17": "iOS 17 or macOS 14",
    "ios18": "iOS 18 or macOS 15",
}


def readme(names: Mapping[str, str], written: Written, lowest: str) -> str:
    """Markdown. `names`: of the files by kind; `lowest`: of coremltools' targets, the oldest that runs the package."""
    file = written.files[0].name
    system = SYSTEMS.get(lowest.lower(), lowest)
    below = "\n".join(filter(None, (parts.bounded(written.inputs), parts.classes(written.classes))))
    table = parts.ports(written.inputs, written.outputs)
    return "\n\n".join(
        (
            f"# {file}: a network for Core ML",
            f"{parts.files(_files(file, names))}\n\n{UNCHECKED}",
            f"{table}\n\n{below}" if below else table,
            parts.pixels(written.pixels, "`fromImage`", "swap `red` and `blue` in `fromImage`"),
            f"## Xcode\n\n{XCODE.format(file=file, system=system, **names)}",
            f"## Measured where this was built\n\n{NOT_RUN}{_script(names)}",
        )
    )


def _files(file: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (file, "the network: a folder that Finder shows as one file"),
        (
            names["json"],
            "inputs, outputs, preprocessing, SHA-256 of the files; the application does not need it",
        ),
        (names["example"], "Swift that loads, feeds and reads it"),
        *parts.example_rows(names, "coremltools"),
    ]


def _script(names: Mapping[str, str]) -> str:
    if "script" not in names:
        return ""
    return f" On a Mac, `python {names['script']}` runs it on stored inputs and compares with what ONNX Runtime computes of them."
