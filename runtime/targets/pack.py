"""The packed target: the model in its canonical form, compressed without loss (runtime/pack), for storage
and download.
"""

from pathlib import Path
from typing import Any

from onnx_lathe.runtime.pack.files import SUFFIX, pack_file
from onnx_lathe.runtime.targets.core.base import Artifact, Progress, Target
from onnx_lathe.runtime.targets.core.registry import register


@register
class PackFile(Target):
    name = "pack"
    outputs = (f"model{SUFFIX}",)
    help = "the model compressed without loss; unpack it with: optimize unpack"

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.lathe`."""
        path = directory / f"model{SUFFIX}"
        sizes = pack_file(model, path)
        return Artifact((path,), sizes.packed, {"onnx_bytes": sizes.onnx})
