"""The plain target: the model as it is, in its canonical form, for any ONNX runtime."""

from pathlib import Path
from typing import Any

from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.core.base import Artifact, Progress, Target
from onnx_lathe.runtime.targets.core.registry import register


@register
class OnnxFile(Target):
    name = "onnx"
    outputs = ("model.onnx", "model.onnx.data")
    help = "the model itself, for ONNX Runtime or any other ONNX tool"
    opened = True
    streams = True

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.onnx`, and `model.onnx.data` if the model is larger than one file may be."""
        path = directory / "model.onnx"
        model_file.save(model_file.load(model), path)
        size = model_file.facts(path).size_bytes
        paths = (path, path.with_name("model.onnx.data")) if size > path.stat().st_size else (path,)
        return Artifact(paths, size)
