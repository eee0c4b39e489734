"""The packed target: the model in its canonical form, compressed without loss (runtime/pack), for storage
and download.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.pack import BEST, EFFORTS
from onnx_lathe.runtime.pack.files import SUFFIX, pack_file
from onnx_lathe.runtime.targets.core.base import Artifact, Progress, Target
from onnx_lathe.runtime.targets.core.registry import register


@register
class PackFile(Target):
    name = "pack"
    outputs = (f"model{SUFFIX}",)
    help = "the model compressed without loss; unpack it with: optimize unpack"

    @dataclass(frozen=True)
    class Config(Target.Config):
        effort: str = field(
            default=BEST,
            metadata={
                "help": "best: the smallest file; fast: ten times sooner, some per cent more",
                "unit": "",
                "choices": EFFORTS,
            },
        )

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.lathe`."""
        path = directory / f"model{SUFFIX}"

        def report(done: int, total: int) -> None:
            progress(f"packing: {done / 1e6:.1f} of {total / 1e6:.1f} MB")

        sizes = pack_file(model, path, options.effort, report)
        return Artifact((path,), sizes.packed, {"onnx_bytes": sizes.onnx, "effort": options.effort})
