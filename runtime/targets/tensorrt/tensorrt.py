"""TensorRT engines: `tensorrt-rtx` compiles for GeForce and RTX GPUs without a GPU, `tensorrt` builds on
the device itself.

Both build the lowered model in a process of its own (process.py) and write, beside the engine, a JSON file
with what an engine does not say without a GPU: its inputs and outputs, the shapes it was built for, the
builder's version and the GPUs it runs on.
"""

import importlib.util
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import onnx

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.tensors import all_nodes
from onnx_lathe.runtime.targets.core.base import (
    Artifact,
    Feeds,
    LayerVerdict,
    Progress,
    Reopened,
    Target,
    own_kernels,
)
from onnx_lathe.runtime.targets.core.branches import constant
from onnx_lathe.runtime.targets.core.registry import register
from onnx_lathe.runtime.targets.tensorrt import process
from onnx_lathe.runtime.targets.tensorrt.attempts import Profiles, attempt, plain, with_branches
from onnx_lathe.runtime.targets.tensorrt.belongings import (
    keep_times,
    keep_weights,
    named_options,
    notes_of,
    sha256,
    sparse_flags,
)
from onnx_lathe.runtime.targets.tensorrt.check import QUANTIZERS, concerns, verdicts
from onnx_lathe.runtime.targets.tensorrt.engine_process import compute_here
from onnx_lathe.runtime.targets.tensorrt.options import BuildConfig, RTXConfig, TensorRTConfig
from onnx_lathe.runtime.targets.tensorrt.profiling import EngineProfiler
from onnx_lathe.runtime.targets.tensorrt.promise import Promise, is_quantized, promises
from onnx_lathe.runtime.targets.tensorrt.proof import weight_facts
from onnx_lathe.runtime.targets.tensorrt.proving import proven
from onnx_lathe.runtime.targets.tensorrt.refusals import deciding_inputs, fatal, unknown_operators
from onnx_lathe.runtime.targets.tensorrt.reopen import open_engine, reopen
from onnx_lathe.runtime.targets.tensorrt.session import EngineSession
from onnx_lathe.runtime.targets.tensorrt.shapes import (
    fit_given,
    given_shapes,
    parse_batch,
    parse_shapes,
    profiles,
)
from onnx_lathe.runtime.targets.tensorrt.usual import settled

NO_INT8_ON_TURING = (
    "TensorRT-RTX has no INT8 kernels for sm75, and computes one engine alike on all its GPUs: the layer runs in float; "
    "build for sm75 apart"
)


ONLY_IN_FULL = ("NonZero", "RoiAlign")
LACKING = "TensorRT-RTX has no such operator, TensorRT has: build for target tensorrt or jetson, or export the model without it"


class TensorRTBase(Target):
    """What the two families share. An engine of one cannot be loaded by the other."""

    lowering = "tensorrt"
    placement = CANONICAL
    title: ClassVar[str]
    library: ClassVar[str]
    builds_here: ClassVar[bool] = False
    """Whether this machine's TensorRT builds the engine."""
    lacking: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Operator that others of the family have -> why this one refuses it."""
    missing: ClassVar[str]
    """What to do when the library is not installed."""

    Config = BuildConfig

    def available(self) -> str | None:
        if importlib.util.find_spec(self.library) is None:
            return self._missing()
        return self._asked({})

    def unserved(self, options: Any) -> str | None:
        if not self.builds_here or importlib.util.find_spec(self.library) is None:
            return None
        try:
            asked, usual = (
                self._request(one) | {"flags": one.flags(), "profiles": [], "quantized": False}
                for one in (options, self.Config())
            )
        except TargetError as error:
            return str(error)
        return None if asked == usual else self._asked({"asked": asked})

    def _asked(self, request: Mapping[str, Any]) -> str | None:
        """None, or why TensorRT's process does not serve it."""
        with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
            try:
                request = {"library": self.library, **request}
                process.ask(request, Path(scratch), lambda text: None, time_limit_s=120.0)
            except TargetError as error:
                return str(error)
        return None

    def _missing(self) -> str:
        return self.missing

    def accepts(self, model: onnx.ModelProto, options: Any) -> None:
        batch, shapes = parse_batch(options.batch), parse_shapes(options.shapes)
        fit_given(model, batch, shapes, asked=options.batch is not None)

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        found = [*fatal(model, self._compute(options)), *unknown_operators(model, self.lacking)]
        return [(concern.node, concern.op, concern.reason) for concern in found]

    def _compute(self, options: Any) -> list[str]:
        """The GPUs that it is built for, where the options say so."""
        return []

    def guards(self, options: Any) -> bool:
        return bool(options.speed == "keep" and self.runs_here(options))

    def profiler(self, options: Any, feeds: Feeds, progress: Progress) -> EngineProfiler:
        count = parse_batch(options.batch)[0].tuned[0]
        return EngineProfiler(self, options, lambda session: feeds(session, count), progress)

    def runs_here(self, options: Any) -> bool:
        return self.opens and not options.strip and compute_here(self.library) is not None

    def open(self, artifact: Artifact, options: Any, threads: int = 1) -> EngineSession | None:
        return open_engine(artifact.paths[0], artifact.details)

    def reopen(self, path: Path, threads: int = 1) -> Reopened:
        return reopen(path)

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        found = [(concern.node, concern.reason) for concern in concerns(model)]
        in_float = self.in_float(options)
        if in_float is not None:
            quantized = [verdict.node for verdict in verdicts(model) if verdict.int8]
            found += [(node, in_float) for node in quantized]
        return found + own_kernels(model, self.title)

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        return verdicts(model, self.in_float(options))

    def in_float(self, options: Any) -> str | None:
        """Why an engine with these options has no INT8 at all; None if it may."""
        return None

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        shapes = given_shapes(parse_batch(options.batch), parse_shapes(options.shapes))
        branches = {**known.get("branches", {}), **constant(model)}
        return {"shapes": shapes, "speed": options.speed, "prefer": options.prefer, "branches": branches}

    def fitted(
        self,
        model: onnx.ModelProto,
        options: Any,
        shapes: Mapping[str, tuple[int, ...]],
        per_call: bool = False,
    ) -> tuple[Any, list[str]]:
        written, notes = settled(model, options.shapes, shapes, per_call, options.batch is not None)
        return (replace(options, shapes={**options.shapes, **written}) if written else options), notes

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Writes `model.NAME.engine` and `.engine.json` beside it; with `log` also `.engine.log`, which a
        failed build leaves too.
        """
        if importlib.util.find_spec(self.library) is None:
            raise TargetError(self._missing())
        proto = model_file.load(model)
        request = self._prepared(proto, model.name, options)
        request |= {"library": self.library, "model": str(model.resolve())}
        alone = request["profiles"]
        if options.batch is None:
            alone = plain(profiles(proto, parse_batch(1), parse_shapes(options.shapes)))
        promised = None
        if is_quantized(proto):
            first = request["profiles"][0] if request["profiles"] else {}
            tuned = {name: tuple(sizes[1]) for name, sizes in first.items()}
            promised = promises(proto, tuned, self.in_float(options))
        request["prove"] = promised is not None
        branches = deciding_inputs(proto.graph)
        del proto  # the worker reads the file; two copies of a large model are enough
        try:
            with tempfile.TemporaryDirectory(prefix=".lathe-", dir=directory) as scratch:
                place = Path(scratch).resolve()
                return self._build_in(place, directory, request, alone, options, progress, promised)
        except TargetError as error:
            raise with_branches(error, branches) from error
        except OSError as error:
            raise TargetError(
                f"{directory}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error

    def _prepared(self, model: onnx.ModelProto, name: str, options: Any) -> dict[str, Any]:
        """What the worker is asked for, but for files. Raises TargetError for what TensorRT would not take of the
        model, which was read from the file `name`.
        """
        wanted = profiles(model, parse_batch(options.batch), parse_shapes(options.shapes))
        refused: dict[str, list[str]] = {}
        for concern in fatal(model, self._compute(options)):
            refused.setdefault(concern.reason, []).append(concern.node)
        if refused:
            listed = "; ".join(f"{first_few(nodes)}: {reason}" for reason, nodes in refused.items())
            raise TargetError(f"{self.title} would not take {name}: {listed}")
        return self._request(options) | {
            "flags": options.flags() + sparse_flags(model, options.sparse),
            "profiles": plain(wanted),
            "quantized": any(node.op_type in QUANTIZERS for node in all_nodes(model)),
        }

    def _build_in(
        self,
        scratch: Path,
        directory: Path,
        request: dict[str, Any],
        alone: Profiles,
        options: Any,
        progress: Progress,
        promised: Sequence[Promise] | None,
    ) -> Artifact:
        """Everything is made in `scratch`, a folder on the same disk, and moved out of it when it is whole."""
        engine = directory / f"model.{self.name}.engine"
        sidecar, log = engine.with_name(f"{engine.name}.json"), engine.with_name(f"{engine.name}.log")
        made = {path: scratch / path.name for path in (engine, sidecar, log)}
        request |= {"engine": str(made[engine]), "log": str(made[log]) if options.log else None}
        request |= {"timing_cache_written": str(scratch / "timing.cache")}
        try:
            answer, tried = attempt(request, alone, scratch, progress, options.time_limit)
        except TargetError as error:
            raise TargetError(f"{self.title} did not build {Path(request['model']).name}: {error}") from error
        finally:
            if made[log].exists():
                made[log].replace(log)
        described = answer.pop("layers")
        proof = None
        if promised is not None:
            progress("reading which layers run in INT8")
            proof = proven(
                self.library, made[engine], described, promised, scratch, getattr(options, "dla", None)
            )
        details = self._describe(answer, request, made[engine], options)
        details["int8"] = None if proof is None else proof.as_json()
        made[sidecar].write_text(
            json.dumps({"engine": engine.name} | details, indent=1) + "\n", encoding="utf-8"
        )
        stripped = keep_weights(Path(request["model"]), scratch, engine) if options.strip else []
        keep_times(scratch / "timing.cache", request.get("timing_cache"))
        weights = [path.replace(directory / path.name) for path in stripped]
        made[sidecar].replace(sidecar)
        made[engine].replace(engine)
        written = [engine, sidecar, *([log] if options.log else []), *weights]
        notes, facts = [*tried, *notes_of(options, details["version"], weights)], [*weight_facts(details)]
        if proof is not None:
            notes += proof.warnings()
            facts += proof.facts()
        return Artifact(tuple(written), engine.stat().st_size, details, tuple(notes), tuple(facts))

    def _request(self, options: Any) -> dict[str, Any]:
        return {
            "level": options.level,
            "workspace_bytes": None if options.workspace_mb is None else options.workspace_mb << 20,
            "compute": [],
        }

    def _describe(
        self, answer: Mapping[str, Any], request: Mapping[str, Any], engine: Path, options: Any
    ) -> dict[str, Any]:
        return {
            "engine_bytes": engine.stat().st_size,
            "engine_sha256": sha256(engine),
            "library": self.library,
            "compute": [name.lower() for name in request["compute"]],
            "profiles": [
                {name: dict(zip(("min", "opt", "max"), shapes, strict=True)) for name, shapes in one.items()}
                for one in request["profiles"]
            ],
            **named_options(options),
            **answer,
        }


@register
class TensorRTRTX(TensorRTBase):
    name = "tensorrt-rtx"
    outputs = ("model.tensorrt-rtx.engine*",)
    help = "engine for GeForce and RTX GPUs, compiled ahead on any x86-64 machine, with or without a GPU"
    opens = True
    builds_here = True
    suffixes = (".engine",)
    title = "TensorRT-RTX"
    packages = ("tensorrt-rtx",)
    library = "tensorrt_rtx"
    lacking = MappingProxyType(dict.fromkeys(ONLY_IN_FULL, LACKING))
    moved = MappingProxyType(
        {
            "timing_cache": "TensorRT-RTX times no kernels when it builds, so there is nothing to keep",
            "dla": "TensorRT-RTX runs on GPUs alone; target tensorrt builds for a Jetson's DLA",
            "portable": "name the GPUs that one engine is for: compute=sm86+sm89",
            "same_compute": "its engines run on every GPU of the architectures that compute names",
        }
    )
    missing = "tensorrt_rtx is not installed; pip install 'onnx-lathe[rtx]'"

    Config = RTXConfig

    def runs_here(self, options: Any) -> bool:
        return super().runs_here(options) and compute_here(self.library) in options.compute.lower().split("+")

    def _missing(self) -> str:
        if platform.system() in ("Linux", "Windows") and platform.machine().lower() in ("x86_64", "amd64"):
            return self.missing
        return "tensorrt_rtx exists only for Linux and Windows on x86-64; build there, with the .onnx file of target 'onnx'"

    def in_float(self, options: Any) -> str | None:
        if options is None:
            return None
        return NO_INT8_ON_TURING if "SM75" in options.compute.upper().split("+") else None

    def _request(self, options: Any) -> dict[str, Any]:
        return super()._request(options) | {"compute": [name.upper() for name in self._compute(options)]}

    def _compute(self, options: Any) -> list[str]:
        return str(options.compute).lower().split("+")


@register
class TensorRT(TensorRTBase):
    name = "tensorrt"
    outputs = ("model.tensorrt.engine*",)
    help = "engine for the GPU or Jetson it is built on, with TensorRT 10.3 or later"
    opens = True
    builds_here = True
    suffixes = (".engine",)
    title = "TensorRT"
    packages = ("tensorrt",)
    library = "tensorrt"
    moved = MappingProxyType(
        {"compute": "TensorRT builds for the GPU that it runs on; target tensorrt-rtx builds for others"}
    )
    missing = "tensorrt is not installed; on a Jetson it comes with JetPack (python3-libnvinfer), elsewhere pip install 'onnx-lathe[gpu]'"

    Config = TensorRTConfig

    def _request(self, options: Any) -> dict[str, Any]:
        level = (
            "AMPERE_PLUS" if options.portable else "SAME_COMPUTE_CAPABILITY" if options.same_compute else None
        )
        if level is not None and JETSON.exists():
            raise TargetError(
                "options portable and same_compute: an engine that is built on a Jetson runs on that kind alone; "
                "leave the option out"
            )
        return super()._request(options) | {
            "hardware": level,
            "dla": options.dla,
            "timing_cache": options.timing_cache and str(Path(options.timing_cache).resolve()),
        }


JETSON = Path("/etc/nv_tegra_release")
"""Is on every Jetson, and on nothing else."""
