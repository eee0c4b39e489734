"""ONNX Runtime on the CPU: the model in the form that its INT8 kernels take
(passes/lowering/onnxruntime.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.placement import Placement
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import Artifact, LayerVerdict, Progress, Target, own_kernels
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.ort import mobile
from onnx_lathe.runtime.targets.ort.check import is_quantized, verdicts

PLACEMENT = Placement(
    depthwise=True,
    joins=False,
    operators=frozenset(
        {"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Sigmoid", "HardSigmoid", "LeakyRelu"}
    ),
    passed=frozenset(
        {
            "DepthToSpace",
            "Expand",
            "Flatten",
            "Gather",
            "MaxPool",
            "Pad",
            "Reshape",
            "Resize",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
        }
    ),
    results=frozenset({"Conv"}),
    unsigned=True,
    pairs=True,
)


LARGER, LARGER_BYTES = 1.1, 100_000
"""By how much the file for phones may be larger than the model, unsaid: its format spends more on names and nodes."""


def _option(help: str) -> Any:
    return field(default=False, metadata={"help": help, "unit": ""})


@register
class OnnxRuntime(Target):
    name = "ort"
    outputs = (mobile.FILE, "model.ort.*")
    help = "the model in the form that ONNX Runtime computes in INT8, for CPUs"
    lowering = "onnxruntime"
    placement = PLACEMENT
    timed = True

    @dataclass(frozen=True)
    class Config(Target.Config):
        reduce_range: bool = _option(
            "weights of 7 bits, for x86-64 processors without VNNI, whose sums saturate"
        )
        speed: str = field(
            default="keep",
            metadata={
                "help": "keep: what takes longer on integers than in float goes back to float, by times measured here; any: it stays",
                "unit": "",
                "choices": ("keep", "any"),
            },
        )
        optimized: bool = _option(
            "also write ONNX Runtime's own graph, fused for this processor and version alone"
        )
        mobile: bool = _option(
            "also write ONNX Runtime's own format for phones, fused for any processor, and the operators "
            "that a reduced build needs"
        )

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        return {"reduce_range": options.reduce_range}

    def guards(self, options: Any) -> bool:
        return bool(options.speed == "keep")

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        found = [
            (layer.node, f"{layer.reason}: it runs in float")
            for layer in verdicts(model)
            if is_quantized(layer) and not layer.int8
        ]
        return found + own_kernels(model, "ONNX Runtime")

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        return verdicts(model)

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.ort.onnx`, and `model.ort.onnx.data` if it is larger than one file may be; with
        `optimized` also `model.ort.optimized.onnx`, with `mobile` what mobile.py writes.
        """
        path = directory / "model.ort.onnx"
        if options.mobile:
            mobile.check_size(model)
        proto = model_file.load(model)
        found = verdicts(proto)
        details: dict[str, Any] = {
            "int8_layers": sum(layer.int8 for layer in found),
            "float_layers": sum(not layer.int8 for layer in found),
        }
        with _removing() as extra:
            if options.mobile:
                progress("converting for phones")
                made = mobile.write(model, directory)
                extra.extend(made.paths)
                details |= {"mobile_bytes": made.size_bytes, "mobile_operators": made.operators}
            if options.optimized:
                progress("optimizing for this processor")
                extra.append(_write_optimized(model, directory))
                details["optimized_bytes"] = extra[-1].stat().st_size
            model_file.save(proto, path)
        size = model_file.facts(path).size_bytes
        notes = _larger(made.size_bytes, size) if options.mobile else ()
        paths = [path, path.with_name(f"{path.name}.data")] if size > path.stat().st_size else [path]
        return Artifact((*paths, *extra), size, details, notes)

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        """Compares every output of the file for phones with the model's."""
        if not options.mobile:
            return {}
        progress("comparing the file for phones with the model")
        path = artifact.paths[0]
        return {"mobile_error": mobile.error(path, path.with_name(mobile.FILE), feeds)}


@contextmanager
def _removing() -> Iterator[list[Path]]:
    """A list of files that are removed if the block fails."""
    paths: list[Path] = []
    try:
        yield paths
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _write_optimized(model: Path, directory: Path) -> Path:
    path = directory / "model.ort.optimized.onnx"
    with replacing(path) as partial:
        ort.write_optimized(model, Path(partial.name))
    return path


def _larger(mobile_bytes: int, size_bytes: int) -> tuple[str, ...]:
    if mobile_bytes <= max(LARGER * size_bytes, size_bytes + LARGER_BYTES):
        return ()
    return (
        f"{mobile.FILE} has {mobile_bytes / 1e6:.3g} MB, model.ort.onnx {size_bytes / 1e6:.3g} MB: ONNX Runtime "
        "stores codebook and float16 weights decoded in its format; int8 keeps it small",
    )
