"""Writes what lies beside a network's two files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.runtime.targets.bundle import description
from onnx_lathe.runtime.targets.bundle.description import describe, put
from onnx_lathe.runtime.targets.ncnn.bundle.describe import convolutions
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
        inputs, outputs = ([shared(port) for port in ports] for ports in (written.inputs, written.outputs))
        described = describe(
            "ncnn",
            [self.param, self.weights],
            inputs,
            outputs,
            pixels,
            {
                "storage": options.storage,
                "profile": options.profile,
                "convolutions": [one.as_json() for one in chosen],
            },
            verified=verified,
            libraries={"ncnn": str(package().__version__)},
        )
        description.write(self.table, described)
        if not options.bundle:
            return self.param, self.weights, self.table
        put(
            self.example,
            example(
                f"{self.param.name}, written by Lathe {VERSION}",
                (self.param.name, self.weights.name),
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
            inputs,
            outputs,
            pixels,
            len(chosen),
            (options.profile, options.storage),
            verified,
        )
        put(self.readme, text)
        return self.param, self.weights, self.table, self.example, self.readme
