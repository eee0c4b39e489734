"""Writes the files of a bundle, and afterwards the inputs to compare with."""

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError, first_few
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.jetson import reference, shipping
from onnx_lathe.runtime.targets.jetson.device.checksums import SUMS, sums
from onnx_lathe.runtime.targets.jetson.device.command import DESCRIPTION
from onnx_lathe.runtime.targets.jetson.devices import DEVICES
from onnx_lathe.runtime.targets.jetson.fallbacks import count_layers, fallbacks
from onnx_lathe.runtime.targets.jetson.readme import readme
from onnx_lathe.runtime.targets.jetson.shell import build_script, only_profile
from onnx_lathe.version import VERSION

MODEL, SHELL, README = "model.onnx", "build.sh", "README.md"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """The folder, which exists."""

    folder: Path

    def write(self, model: onnx.ModelProto, request: Mapping[str, Any], options: Any) -> dict[str, Any]:
        """Everything but stored inputs. `request`: what TensorRT is asked for. Returns details for the report."""
        model_file.save(model, self.folder / MODEL)
        size = model_file.inspect_file(self.folder / MODEL).size_bytes
        title = f"{_plain(model.graph.name) or 'network'} for Jetson, written by Lathe {VERSION}"
        described = {
            "format": FORMAT,
            "title": title,
            "model": MODEL,
            "device": options.device or None,
            "inputs": _ports(model, model.graph.input),
            "outputs": _ports(model, model.graph.output),
            "request": dict(request),
            "time_limit_s": options.time_limit,
            "log": options.log,
            "memory": {
                "model_bytes": size,
                "inputs_bytes": _input_bytes(model, only_profile(request)),
                "devices": [
                    {"name": name, "workspace_mb": one.workspace_mb, **asdict(one)}
                    for name, one in DEVICES.items()
                ],
            },
            "dla": _dla(model, options),
            "reference": None,
            "versions": {"lathe": VERSION, "onnxruntime": ort.VERSION},
        }
        for name, text in shipping.parts().items():
            self._put(name, text)
        script = build_script(title, request, options.log, options.time_limit)
        self._put(SHELL, script)
        for name in (SHELL, "build.py"):
            path = self.folder / name
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        self._describe(described)
        return {"model_bytes": size, "device": options.device or None, "dla": described["dla"]}

    def store(self, model: Path, given: bool, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Adds inputs, the feeds if they are `given` data, and what ONNX Runtime computes of them with the lowered
        model. Returns details for the report; `notes` are warnings.
        """
        described = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
        session = ort.session(model)
        profiles = only_profile(described["request"])
        stored = reference.calls(feeds, profiles) if given else []
        notes = []
        if given and not stored:
            notes.append(
                "the data's sizes are not those that the engine takes: the stored inputs are random values"
            )
        made_up = not stored
        stored = stored or [reference.made_up(session, profiles)]
        try:
            found = reference.write(self.folder / reference.FILE, session, stored)
        except ModelError as error:
            if given or not profiles:
                raise
            raise _no_sizes(profiles, error) from error
        described["reference"] = found | {"made_up": made_up}
        self._describe(described)
        return {"reference": "random" if made_up else "data", **({"notes": notes} if notes else {})}

    def artifact(self, details: Mapping[str, Any]) -> Artifact:
        """All files, the network first."""
        model = self.folder / MODEL
        others = sorted(path for path in self.folder.rglob("*") if path.is_file() and path != model)
        return Artifact((model, *others), sum(path.stat().st_size for path in (model, *others)), details)

    def _describe(self, described: Mapping[str, Any]) -> None:
        self._put(DESCRIPTION, json.dumps(described, indent=1) + "\n")
        self._put(README, readme(described))
        self._put(SUMS, sums(self.folder))

    def _put(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())


def _no_sizes(profiles: Mapping[str, Any], error: ModelError) -> TargetError:
    """Says at which sizes the model does not run, and what to do."""
    tuned = [f"input '{name}' {'x'.join(map(str, sizes[1]))}" for name, sizes in profiles.items()]
    return TargetError(
        f"the model does not run at the sizes that it is built for, {first_few(tuned)}: give data, whose shapes are taken, "
        f"or shapes={{{next(iter(profiles))}: MIN:OPT:MAX}}; {error}"
    )


def _dla(model: onnx.ModelProto, options: Any) -> dict[str, Any] | None:
    if options.dla is None:
        return None
    on_gpu = [{"node": node, "reason": reason} for node, reason in fallbacks(model)]
    return {"core": options.dla, "layers": count_layers(model), "on_gpu": on_gpu}


def _plain(text: str) -> str:
    """Letters, digits and spaces of a name, for a heading and a comment."""
    return " ".join(re.sub(r"[^A-Za-z0-9_.-]+", " ", text).split())[:60]


def _ports(model: onnx.ModelProto, values: Any) -> list[dict[str, Any]]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        {"name": value.name, "dtype": _dtype(value).name, "shape": _shape(value)}
        for value in values
        if value.name not in stored
    ]


def _dtype(value: onnx.ValueInfoProto) -> np.dtype:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]


def _input_bytes(model: onnx.ModelProto, profiles: Mapping[str, Any]) -> int:
    """Of all inputs at their greatest sizes."""
    found = 0
    for port, value in zip(_ports(model, model.graph.input), model.graph.input, strict=False):
        shape = profiles[port["name"]][2] if port["name"] in profiles else port["shape"]
        found += (
            int(np.prod([size for size in shape if isinstance(size, int)], dtype=np.int64))
            * _dtype(value).itemsize
        )
    return found
