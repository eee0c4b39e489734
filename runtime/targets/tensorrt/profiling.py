"""Times lowered models as engines on the GPU here: whole models in turn, and where the time of one goes."""

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.protocols import Profile, Region
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import Progress, Target
from onnx_lathe.runtime.targets.tensorrt.engine_layers import inspected, nodes_of, types_of
from onnx_lathe.runtime.targets.tensorrt.engine_process import EngineProcess

BUDGET_S = 0.5
LARGEST_BYTES = 1 << 30
"""Of a model that is timed: it is built into an engine again and again."""
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class EngineProfiler:
    """Implements Profiler of passes/core/services.py, on the GPU here. Engines are kept until the block ends."""

    def __init__(
        self,
        target: Target,
        options: Any,
        feeds: Callable[[Any], Mapping[str, np.ndarray]],
        progress: Progress,
    ) -> None:
        """`feeds`: the sample for a session, as many as the engine is tuned for."""
        self._target, self._options, self._feeds, self._progress = target, options, feeds, progress
        self._library: str = target.library  # type: ignore[attr-defined]
        self._scratch = tempfile.TemporaryDirectory(prefix="lathe-", ignore_cleanup_errors=True)
        self._engines: dict[str, Path] = {}
        self._sample: dict[str, np.ndarray] = {}
        self._process: tuple[list[Path], EngineProcess] | None = None

    def __enter__(self) -> "EngineProfiler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()
        self._scratch.cleanup()

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        """Median milliseconds on the GPU of (base, candidate), run in turn. Raises TargetError where an engine is not
        built or does not run.
        """
        process = self._loaded([self._engine(base), self._engine(candidate)])
        request = {"do": "times_in_turn", "numbers": [0, 1], "budget_s": 2 * BUDGET_S}
        first, second = np.median(self._ask(process, request)[1]["ms"], axis=0)
        return float(first), float(second)

    def profile(self, model: onnx.ModelProto) -> Profile | None:
        """None for a model that is too large. Raises TargetError where the engine is not built or does not run."""
        if model_file.size_bytes(model) > LARGEST_BYTES:
            return None
        process = self._loaded([self._engine(model)])
        told = self._ask(process, {"do": "profile", "number": 0, "budget_s": BUDGET_S})[0]
        return read_profile(model, told["information"], told["layers"])

    def _ask(self, process: EngineProcess, request: Mapping[str, Any]) -> Any:
        try:
            return process.ask(request, self._sample)
        except ModelError as error:
            raise TargetError(str(error)) from error

    def _engine(self, model: onnx.ModelProto) -> Path:
        """Built once for equal models, for the sizes of the sample."""
        key = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:16]
        if key not in self._engines:
            if not self._sample:
                self._sample = dict(self._feeds(ort.session(model)))
            folder = Path(self._scratch.name) / key
            folder.mkdir()
            model_file.save(model, folder / "model.onnx")
            # the log goes with names of layers, by which the profile knows them
            options = replace(self._options, shapes=self._shapes(), log=True)
            self._progress(f"building engine {len(self._engines) + 1} to time")
            built = self._target.build(folder / "model.onnx", folder, options, lambda text: None)
            self._engines[key] = built.paths[0]
        return self._engines[key]

    def _shapes(self) -> dict[str, str]:
        return {name: "x".join(map(str, array.shape)) for name, array in self._sample.items() if array.ndim}

    def _loaded(self, engines: list[Path]) -> EngineProcess:
        """A process that holds these engines, and no others: what they leave in the GPU's memory goes with it."""
        if self._process is None or self._process[0] != engines:
            self._leave()
            process = EngineProcess(self._library)
            self._process = engines, process
            core = getattr(self._options, "dla", None)
            for engine in engines:
                self._ask(process, {"do": "open", "engine": str(engine), "dla": core})
        return self._process[1]

    def _leave(self) -> None:
        if self._process is not None:
            self._process[1].close()
            self._process = None


def read_profile(model: onnx.ModelProto, information: str, times: Mapping[str, float]) -> Profile:
    """`information`: of TensorRT's inspector, of an engine built with details; `times`: milliseconds by its layers'
    names. Raises TargetError for what is none.
    """
    layers = inspected(information)
    if not layers:
        raise TargetError("TensorRT tells nothing of the engine's layers")
    operators = {node.name: node.op_type for node in model.graph.node}
    spent: dict[str, float] = defaultdict(float)
    for layer in layers:
        if (owner := _owner(nodes_of(layer), operators)) is not None:
            spent[owner] += times.get(str(layer.get("Name")), 0.0)
    return Profile(dict(spent), list(_regions(layers, times)), sum(times.values()))


def _owner(nodes: Sequence[str], operators: Mapping[str, str]) -> str | None:
    """The one of several nodes that the time is for: the layer with a weight, else the first."""
    weighted = [name for name in nodes if operators.get(name) in LAYERS]
    return next(iter(weighted or nodes), None)


def _regions(layers: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> Iterator[Region]:
    """Layers joined by tensors of INT8, with those that quantize at their borders."""
    ends: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        for name, kind in (*types_of(layer, "Inputs"), *types_of(layer, "Outputs")):
            if kind == "int8":
                ends[name].append(index)
    group = list(range(len(layers)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for joined in ends.values():
        for index in joined[1:]:
            group[root(index)] = root(joined[0])
    members: dict[int, list[int]] = defaultdict(list)
    for index in sorted({index for joined in ends.values() for index in joined}):
        members[root(index)].append(index)
    for indices in members.values():
        nodes = {name for index in indices for name in nodes_of(layers[index])}
        yield Region(
            frozenset(nodes), sum(times.get(str(layers[index].get("Name")), 0.0) for index in indices)
        )
