"""QNN, for the neural processors (HTP) of Qualcomm's chips: a program compiled for named chips, in ONNX Runtime's
context file, which an application opens with the QNN provider.

Compiled on a PC by onnxruntime-qnn, and run in its simulator for metrics and gates. Nothing of it is run on a chip here.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.placement import PHONE
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.bundle import description
from onnx_lathe.runtime.targets.bundle.ports import ports_from_json
from onnx_lathe.runtime.targets.core.base import (
    NOT_QUANTIZED,
    Artifact,
    LayerVerdict,
    Progress,
    Reopened,
    Target,
    own_kernels,
)
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.qnn import context, library, sizes
from onnx_lathe.runtime.targets.qnn.agreement import Agreement, first_sample
from onnx_lathe.runtime.targets.qnn.compiling import RefusedError, compile_context
from onnx_lathe.runtime.targets.qnn.describing import DESCRIPTION, described, ports
from onnx_lathe.runtime.targets.qnn.layers import verdicts
from onnx_lathe.runtime.targets.qnn.options import MOVED, QnnConfig
from onnx_lathe.runtime.targets.qnn.reopen import reopen
from onnx_lathe.runtime.targets.qnn.session import SimulatedSession


@register
class Qnn(Target):
    name = "qnn"
    outputs = (context.CONTEXT, context.BINARY, DESCRIPTION)
    packages = ("onnxruntime-qnn",)
    help = "a program for the neural processor of Qualcomm's chips, in ONNX Runtime's context file"
    lowering = "qnn"
    placement = PHONE
    opens = True
    moved = MOVED

    Config = QnnConfig

    def available(self) -> str | None:
        return library.unavailable()

    def accepts(self, model: onnx.ModelProto, options: Any) -> None:
        sizes.check_given(model, sizes.parse_shapes(options.shapes))

    def fed(self, options: Any, preprocess: str | None) -> Any:
        return options if options.preprocess or not preprocess else replace(options, preprocess=preprocess)

    def fitted(
        self,
        model: onnx.ModelProto,
        options: Any,
        shapes: Mapping[str, tuple[int, ...]],
        per_call: bool = False,
    ) -> tuple[Any, list[str]]:
        given = sizes.parse_shapes(options.shapes)
        known = sizes.of_data(model, given, shapes, per_call)
        told = sizes.undecided(model, given)
        notes = [
            f"compiled for {name} {sizes.text(shape)} alone, as the data has it: a chip's program has one size"
            for name, shape in known.items()
            if name in told
        ]
        written = {name: sizes.text(shape) for name, shape in known.items()}
        return replace(options, shapes={**options.shapes, **written}), notes

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        """What the compiler itself says, where it is installed."""
        given = sizes.parse_shapes(options.shapes)
        if names := sizes.undecided(model, given):
            why = "its size is not fixed, and a chip's program has one size: say it, such as"
            return [(name, "input", f"{why} {sizes.example(model, name)}") for name in names]
        if library.unavailable():
            return []
        with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
            try:
                compile_context(model, sizes.sizes(model, given), Path(scratch), options)
            except RefusedError as error:
                return [(one.node, one.op, one.reason) for one in error.left]
        return []

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        found = [(one.node, one.reason) for one in verdicts(model) if one.reason not in ("", NOT_QUANTIZED)]
        return found + own_kernels(model, "QNN")

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        return verdicts(model)

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model_ctx.onnx`, with the program in `model_ctx_qnn.bin` or in itself, and `model_ctx.json`."""
        if reason := library.unavailable():
            raise TargetError(reason)
        proto = model_file.load(model)
        shapes = sizes.sizes(proto, sizes.parse_shapes(options.shapes))
        progress(f"compiling for {options.soc}")
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
            compiled = compile_context(proto, shapes, Path(scratch), options)
            seconds = time.perf_counter() - started
            inputs, outputs = ports(proto, shapes, compiled)
            names = [*context.binaries(compiled), context.CONTEXT]  # what names the other comes last
            files = [_moved(Path(scratch) / name, directory / name) for name in names][::-1]
            description.write(directory / DESCRIPTION, described(files, inputs, outputs, options))
        found = verdicts(proto)
        details = {
            "chips": [chip.name for chip in options.chips],
            "programs": context.programs(compiled),
            "int8_layers": sum(layer.int8 for layer in found),
            "float_layers": sum(not layer.int8 for layer in found),
            "compile_s": seconds,
        }
        return Artifact(
            (*files, directory / DESCRIPTION),
            sum(path.stat().st_size for path in files),
            details,
            facts=_facts(found, options),
        )

    def runs_here(self, options: Any) -> bool:
        return bool(options.simulate and library.simulates() and len(options.chips) == 1)

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, np.ndarray],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        """Compares every output in the simulator with ONNX Runtime's of the lowered model, on one sample."""
        if not self.runs_here(options):
            return {}
        progress("comparing the chip's simulator with ONNX Runtime")
        path = artifact.paths[0].with_name(DESCRIPTION)
        inputs, outputs = ports_from_json(description.read(path, context.CONTEXT, self.name))
        sample = first_sample(inputs, feeds)
        if sample is None:
            return {}
        names = [port.tensor for port in outputs]
        wanted = ort.run(ort.session(model), sample)
        session = SimulatedSession(artifact.paths[0], inputs, outputs, options.chips[0])
        try:
            started = time.perf_counter()
            got = dict(zip(names, session.run(names, sample), strict=True))
            ms = 1e3 * (time.perf_counter() - started)
        finally:
            session.close()
        quantized = any(layer.int8 for layer in verdicts(model_file.load(model)))
        agreement = Agreement.of(wanted, got, quantized, library.installed())
        agreement.check()
        verified = agreement.as_json()
        files = [one for one in artifact.paths if one != path]
        description.write(path, described(files, inputs, outputs, options, verified))
        return {"verified": verified, "simulated_ms": ms}

    def open(self, artifact: Artifact, options: Any, threads: int = 1) -> SimulatedSession | None:
        path = artifact.paths[0].with_name(DESCRIPTION)
        inputs, outputs = ports_from_json(description.read(path, context.CONTEXT, self.name))
        return SimulatedSession(artifact.paths[0], inputs, outputs, options.chips[0])

    def wrote(self, path: Path) -> bool:
        return path.suffix.lower() == ".onnx" and context.is_context(path)

    def reopen(self, path: Path, threads: int = 1) -> Reopened:
        return reopen(path)


def _moved(source: Path, target: Path) -> Path:
    """The file, in the place where results go: whole or not at all."""
    with source.open("rb") as file, replacing(target) as copy:
        while piece := file.read(1 << 20):
            copy.write(piece)
    return target


def _facts(found: list[LayerVerdict], options: QnnConfig) -> tuple[str, ...]:
    floats = [layer.node for layer in found if not layer.int8]
    if not found or not floats:
        return ()
    if len(floats) == len(found):
        said = "it computes in float16: no layer is quantized"
    else:
        said = f"{len(floats)} of {len(found)} layers compute in float16: {first_few(floats)}"
    return (said,)
