"""Writes what lies beside the files of a model: the description, and what the developer of an application wants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.bundle import description
from onnx_lathe.runtime.targets.bundle.description import describe, put
from onnx_lathe.runtime.targets.bundle.examples import Examples, write_examples, write_script
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.bundle.ports import Port

Names = Mapping[str, str]
"""Names of the files by kind: "json", then the kinds of a target's sources, and "examples" and "script" if there are any."""


@dataclass(frozen=True)
class Written:
    """What a target has written. `files`: what the device loads, the first by name; the other fields are those of
    `description.describe`.
    """

    target: str
    files: Sequence[Path]
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    pixels: Pixels | str
    choices: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    verified: Mapping[str, Any] | None = None
    examples: Examples | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Of the names of all that lies beside the files."""
        return f"model.{self.target}"


def write_description(written: Written, stored: Mapping[str, Any] | None = None) -> Path:
    """Writes model.TARGET.json. `stored`: what `write_examples` says."""
    path = written.files[0].with_name(f"{written.stem}.json")
    described = describe(
        written.target,
        written.files,
        written.inputs,
        written.outputs,
        written.pixels,
        written.choices,
        classes=written.classes,
        verified=written.verified,
        examples=stored,
        libraries=written.libraries,
    )
    description.write(path, described)
    return path


def write_bundle(
    written: Written, sources: Mapping[str, tuple[str, str]], readme: Callable[[Names], str]
) -> tuple[Path, ...]:
    """Writes the description, examples with the script that verifies them, sources and README.

    `sources`: by kind, how the name of the file ends, and its text; `readme`: Markdown, of the names of the files.
    Returns all files that were written, the description first.
    """
    folder = written.files[0].parent

    def place(ending: str) -> Path:
        return folder / f"{written.stem}.{ending}"

    stored = None
    if written.examples is not None:
        stored = write_examples(place("examples.npz"), written.inputs, written.outputs, written.examples)
    made = {"json": write_description(written, stored)}
    for kind, (ending, text) in sources.items():
        made[kind] = place(ending)
        put(made[kind], text)
    if stored is not None:
        made |= {"examples": place("examples.npz"), "script": place("verify.py")}
        write_script(made["script"])
    put(place("README.md"), readme({kind: path.name for kind, path in made.items()}))
    return *made.values(), place("README.md")
