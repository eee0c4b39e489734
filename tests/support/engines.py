"""Engines of small networks, built by the stand-in of TensorRT that a made-up machine has."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnx_lathe.runtime.targets.core.registry import find
from tests.support import gpu, quantized


def network(
    nodes: list[onnx.NodeProto] | None = None, x: object = None, y: object = None, **constants: object
) -> onnx.ModelProto:
    """x [n, 3] -> y [n, 2], unless others are given."""
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
    return quantized.model(
        nodes, {"x": x or ["n", 3]}, {"y": ["n", 2] if y is None else y}, constants or {"w": weight}
    )


def build(machine: gpu.Machine, model: onnx.ModelProto, version: str = "10.13.3.9", **options) -> Path:
    target = find(machine.install(version).replace("_", "-"))()
    folder = machine.folder.parent
    onnx.save(model, folder / "model.onnx")
    (folder / "out").mkdir(exist_ok=True)
    return target.build(
        folder / "model.onnx", folder / "out", target.Config(**options), lambda text: None
    ).paths[0]


def becomes_one_for_dla(engine: Path, core: int) -> None:
    """The stand-in's builder knows no DLA: its plan and what is said of it are changed."""
    plan = json.dumps(json.loads(engine.read_bytes()) | {"dla": core}).encode()
    engine.write_bytes(plan)
    sidecar = engine.with_name(f"{engine.name}.json")
    hashed = {"engine_bytes": len(plan), "engine_sha256": hashlib.sha256(plan).hexdigest()}
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | hashed | {"dla": core}))
