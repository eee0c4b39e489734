"""Writes what lies beside a network's two files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.runtime.targets.bundle import description
from onnx_lathe.runtime.targets.bundle.description import describe, put
from onnx_lathe.runtime.targets.bundle.examples import Examples, write_examples, write_script
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.ncnn.bundle.describe import Chosen, convolutions
from onnx_lathe.runtime.targets.ncnn.bundle.example import example
from onnx_lathe.runtime.targets.ncnn.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.ncnn.bundle.readme import readme
from onnx_lathe.runtime.targets.ncnn.convert import Conversion
from onnx_lathe.runtime.targets.ncnn.running import package
from onnx_lathe.runtime.targets.ncnn.session import shared
from onnx_lathe.version import VERSION


@dataclass(frozen=True)
class Bundle:
    """All files that belong to a network, by what they are."""

    param: Path
    weights: Path
    table: Path
    example: Path
    readme: Path
    examples: Path
    script: Path

    @classmethod
    def of(cls, param: Path) -> "Bundle":
        endings = (".bin", ".json", ".example.cpp", ".README.md", ".examples.npz", ".verify.py")
        return cls(param, *(param.with_suffix(ending) for ending in endings))

    def write(
        self,
        written: Conversion,
        model: onnx.ModelProto,
        options: Any,
        verified: Mapping[str, Any] | None = None,
        examples: Examples | None = None,
    ) -> tuple[Path, ...]:
        """Writes the description and, if the options want it, the example and the README. `verified`: what came of
        the comparison with ONNX Runtime. Returns all files that there are now.
        """
        pixels = pixels_of(options.preprocess, written.inputs)
        chosen = convolutions(written.layers, model, options.profile)
        ports = [shared(port) for port in written.inputs], [shared(port) for port in written.outputs]
        stored = None
        if options.bundle and examples is not None:
            stored = write_examples(self.examples, *ports, examples)
        choices = {
            "storage": options.storage,
            "profile": options.profile,
            "convolutions": [one.as_json() for one in chosen],
        }
        files = [self.param, self.weights]
        versions = {"ncnn": str(package().__version__)}
        described = describe(
            "ncnn", files, *ports, pixels, choices, verified=verified, examples=stored, libraries=versions
        )
        description.write(self.table, described)
        if not options.bundle:
            return *files, self.table
        halves = options.profile != "arm64-fp32" and bool((verified or {}).get("fits_float16", True))
        put(self.example, self._example(written, chosen, pixels, halves))
        made = {"param": self.param, "bin": self.weights, "json": self.table, "example": self.example}
        if stored is not None:
            write_script(self.script)
            made |= {"examples": self.examples, "script": self.script}
        names = {kind: path.name for kind, path in made.items()}
        settings = options.profile, options.storage
        put(self.readme, readme(names, *ports, pixels, len(chosen), settings, verified))
        return *made.values(), self.readme

    def _example(
        self, written: Conversion, chosen: Sequence[Chosen], pixels: Pixels | str, halves: bool
    ) -> str:
        names = self.param.name, self.weights.name
        title = f"{self.param.name}, written by Lathe {VERSION}"
        return example(title, names, halves, written.inputs, written.outputs, chosen, pixels)
