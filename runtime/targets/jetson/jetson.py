"""A folder for a Jetson: the lowered network, and what builds an engine of it on the device with one command.

An engine is tied to the device, its GPU and its TensorRT, and no desktop builds one for a Jetson. So the folder
carries the very worker that builds engines here, with the same request, and everything that the person at the
device needs: checksums, stored inputs and outputs to compare with, and a README.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, UsageError, nearest
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.core.base import Artifact, LayerVerdict, Progress, option
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.jetson.device.command import FALLBACK
from onnx_lathe.runtime.targets.jetson.devices import DEVICES
from onnx_lathe.runtime.targets.jetson.fallbacks import ON_GPU, fallbacks, layers_on_gpu
from onnx_lathe.runtime.targets.jetson.writing import Bundle
from onnx_lathe.runtime.targets.tensorrt.options import BuildConfig
from onnx_lathe.runtime.targets.tensorrt.shapes import BETWEEN, parse_batch, parse_shapes
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTBase

FOLDER = "model.jetson"
DATA, RANDOM, NOTHING = REFERENCES = ("data", "random", "nothing")


@register
class Jetson(TensorRTBase):
    name = "jetson"
    outputs = (FOLDER,)
    help = "folder that builds an engine on a Jetson with one command, by trtexec or Python"
    title = "TensorRT"
    library = "tensorrt"

    @dataclass(frozen=True)
    class Config(BuildConfig):
        device: str = option(
            "",
            f"the Jetson that it is for, which decides the scratch memory: {', '.join(DEVICES)}; left out: any",
        )
        dla: int | None = option(
            None,
            "build for this DLA core, 0 or 1, with what it cannot compute on the GPU; batch is 1 then, if it is not given. "
            "For AGX Orin, and Orin NX with JetPack 6",
        )
        reference: str = option(
            DATA,
            "inputs that are stored to compare the engine with: data (the run's first samples; random values without "
            "data), random, nothing",
            choices=REFERENCES,
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.strip:
                raise UsageError(
                    "option strip: the engine is built where it runs and keeps its weights; leave it out"
                )
            if self.device and self.device not in DEVICES:
                known = nearest(self.device, DEVICES) or f"; it takes {', '.join(DEVICES)}"
                raise UsageError(f"option device: there is no '{self.device}'{known}")
            for name, value in {
                "batch": self.batch,
                "shapes": " ".join(map(str, self.shapes.values())),
            }.items():
                if BETWEEN in str(value):
                    raise UsageError(
                        f"option {name}: a bundle has one profile, for which its inputs are stored and its flags written; "
                        f"leave out what is behind {BETWEEN}, or build with target tensorrt on the device"
                    )
            if self.dla is not None:
                self._check_dla(self.dla)

        def _check_dla(self, core: int) -> None:
            if core not in (0, 1):
                raise UsageError(f"option dla takes a core, 0 or 1, not {core}")
            device = DEVICES.get(self.device)
            if device is not None and core >= device.dla:
                able = ", ".join(name for name, one in DEVICES.items() if core < one.dla)
                raise UsageError(f"option dla: {device.title} has no DLA core {core}; these have: {able}")
            if self.batch is None:
                object.__setattr__(self, "batch", 1)
            (sizes,) = parse_batch(self.batch)
            if sizes.least != sizes.greatest:
                raise UsageError(
                    f"option dla: DLA takes one size, not a range, and batch is {self.batch}; give batch=1"
                )
            for name, (one,) in parse_shapes(self.shapes).items():
                if one.least != one.greatest:
                    raise UsageError(
                        f"option dla: DLA takes one size, not a range; give one shape for '{name}'"
                    )

        @property
        def scratch_mb(self) -> int | None:
            """MiB of scratch memory that the builder may use; None: as TensorRT decides."""
            device = DEVICES.get(self.device)
            return self.workspace_mb or (device.workspace_mb if device else None)

    def available(self) -> str | None:
        return None  # it writes files; TensorRT is on the device

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        found = super().check(model, options)
        if options.dla is None:
            return found
        return found + [(node, f"{ON_GPU}: {reason}") for node, reason in fallbacks(model)]

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        """Also why a layer runs beside the DLA core that is asked for; in INT8 or not, as on the GPU."""
        found = super().layers(model, options)
        if options is None or options.dla is None:
            return found
        beside = layers_on_gpu(model)
        return [
            replace(one, reason="; ".join(filter(None, (one.reason, beside.get(one.node))))) for one in found
        ]

    def fitted(
        self,
        model: onnx.ModelProto,
        options: Any,
        shapes: Mapping[str, tuple[int, ...]],
        per_call: bool = False,
    ) -> tuple[Any, list[str]]:
        options, notes = super().fitted(model, options, shapes, per_call)
        if not shapes and options.reference == DATA:
            options = replace(options, reference=RANDOM)
            notes = [*notes, "no data is given: the stored inputs are random values"]
        return options, notes

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes the folder `model.jetson`, whole or not at all. Inputs to compare with are stored by `verify`."""
        proto = model_file.load(model)
        request = self._prepared(proto, model.name, options)
        progress("writing the bundle")
        target = directory / FOLDER
        if target.exists():
            raise TargetError(f"{target}: is there already; remove it, or choose another folder")
        try:
            with tempfile.TemporaryDirectory(prefix=".lathe-", dir=directory) as scratch:
                bundle = Bundle(Path(scratch) / FOLDER)
                bundle.folder.mkdir()
                details = bundle.write(proto, request, options)
                bundle.folder.replace(target)
        except OSError as error:
            raise TargetError(
                f"{directory}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        return Bundle(target).artifact(details)

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto | None = None,
    ) -> Mapping[str, Any]:
        """Stores inputs, and what ONNX Runtime computes of them. No engine runs here: that is left to the device."""
        if options.reference == NOTHING:
            return {}
        progress("storing inputs to compare with")
        bundle = Bundle(artifact.paths[0].parent)
        return bundle.store(model, options.reference == DATA, feeds)

    def _prepared(self, model: onnx.ModelProto, name: str, options: Any) -> dict[str, Any]:
        request = super()._prepared(model, name, options)
        fallback = [] if options.dla is None else [FALLBACK]
        return request | {"flags": [*request["flags"], *fallback]}

    def _request(self, options: Any) -> dict[str, Any]:
        scratch = options.scratch_mb
        return super()._request(options) | {
            "workspace_bytes": None if scratch is None else scratch << 20,
            "dla": options.dla,
        }
