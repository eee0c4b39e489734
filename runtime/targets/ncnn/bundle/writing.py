"""Writes what lies beside a network's two files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.targets.ncnn.bundle.describe import Chosen, convolutions
from onnx_lathe.runtime.targets.ncnn.bundle.example import example
from onnx_lathe.runtime.targets.ncnn.bundle.pixels import Pixels, pixels_of
from onnx_lathe.runtime.targets.ncnn.bundle.readme import readme
from onnx_lathe.runtime.targets.ncnn.convert import Conversion
from onnx_lathe.runtime.targets.ncnn.reopen import digest
from onnx_lathe.runtime.targets.ncnn.running import package
from onnx_lathe.runtime.targets.ncnn.session import FORMAT, ports_as_json
from onnx_lathe.version import VERSION


@dataclass(frozen=True)
class Bundle:
    """All files that belong to a network, by what they are."""

    param: Path
    weights: Path
    table: Path
    example: Path
    readme: Path

    @classmethod
    def of(cls, param: Path) -> "Bundle":
        endings = (".bin", ".json", ".example.cpp", ".README.md")
        return cls(param, *(param.with_suffix(ending) for ending in endings))

    def write(
        self,
        written: Conversion,
        model: onnx.ModelProto,
        options: Any,
        verified: Mapping[str, Any] | None = None,
    ) -> tuple[Path, ...]:
        """Writes the description and, if the options want it, the example and the README. `verified`: what came of
        the comparison with ONNX Runtime. Returns all files that there are now.
        """
        halves = options.profile != "arm64-fp32" and bool((verified or {}).get("fits_float16", True))
        pixels = pixels_of(options.preprocess, written.inputs)
        chosen = convolutions(written.layers, model, options.profile)
        described = self._described(written, chosen, pixels, options) | (
            {"verified": dict(verified)} if verified else {}
        )
        _put(self.table, json.dumps(described, indent=1))
        if not options.bundle:
            return self.param, self.weights, self.table
        names = (self.param.name, self.weights.name)
        _put(
            self.example,
            example(
                f"{self.param.name}, written by Lathe {VERSION}",
                names,
                halves,
                written.inputs,
                written.outputs,
                chosen,
                pixels,
            ),
        )
        by_kind = {"param": self.param, "bin": self.weights, "json": self.table, "example": self.example}
        text = readme(
            {kind: path.name for kind, path in by_kind.items()},
            described,
            pixels,
            options.profile,
            options.storage,
        )
        _put(self.readme, text.rstrip("\n"))
        return self.param, self.weights, self.table, self.example, self.readme

    def _described(
        self, written: Conversion, chosen: list[Chosen], pixels: Pixels | str, options: Any
    ) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "storage": options.storage,
            "profile": options.profile,
            **ports_as_json(written.inputs, written.outputs),
            "preprocessing": None if isinstance(pixels, str) else pixels.as_json(),
            "convolutions": [one.as_json() for one in chosen],
            "files": {"param": digest(self.param), "bin": digest(self.weights)},
            "versions": {"lathe": VERSION, "ncnn": str(package().__version__)},
        }


def _put(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write((text + "\n").encode())
