"""Where a model's time goes in a plain session: per node, and per region that computes on integers."""

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.protocols import Profile, Region
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort

BUDGET_S = 0.5
LEAST_RUNS = 5
LARGEST_BYTES = 1 << 30
"""Of a model that is profiled: its graph is written and read again."""

FROM_INTEGERS = ("DequantizeLinear", "MatMulIntegerToFloat", "Cast", "Shape", "Size")
"""Operators that read integers of quantized values and write something else."""
WRITES_INTEGERS = ("QuantizeLinear", "QLinear", "QGemm")

_MARK = re.compile(r"@(\d+)@")
_EVENT = "_kernel_time"

Feeds = Callable[[onnxruntime.InferenceSession], Mapping[str, np.ndarray]]


class ModelProfiler:
    """Times whole models on one sample. Implements Profiler of passes/core/services.py."""

    def __init__(self, feeds: Feeds, budget_s: float = BUDGET_S) -> None:
        """`feeds`: the sample for a session. `budget_s`: seconds for each model, or longer for a few runs."""
        self._feeds, self._budget_s = feeds, budget_s

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        """Milliseconds of (base, candidate) in plain sessions: the fastest runs, which others on the machine
        disturbed least.

        The two take turns; each runs twice, since the threads of the other still spin during the first.
        """
        sessions = [ort.plain_session(model) for model in (base, candidate)]
        feeds = self._feeds(sessions[0])
        best, started, rounds = [np.inf, np.inf], time.perf_counter(), 0
        while rounds <= LEAST_RUNS or time.perf_counter() - started < 2 * self._budget_s:
            for index, session in enumerate(sessions):
                ort.run(session, feeds)
                begin = time.perf_counter()
                ort.run(session, feeds)
                best[index] = min(best[index], 1e3 * (time.perf_counter() - begin))
            rounds += 1
        return best[0], best[1]

    def profile(self, model: onnx.ModelProto) -> Profile | None:
        """None for a model that is too large.

        Raises ModelError if ONNX Runtime cannot load or run it.
        """
        if model_file.size_bytes(model) > LARGEST_BYTES:
            return None
        names = [node.name for node in model.graph.node]
        return _Executed(*self.executed(model), names).profile()

    def executed(self, model: onnx.ModelProto) -> tuple[onnx.GraphProto, dict[str, float]]:
        """(the graph that ONNX Runtime executes, milliseconds by the names of its nodes). A node that it took over from
        the model has the model's node's place in its name: `marked_place` reads it.

        Raises ModelError if ONNX Runtime cannot load or run it.
        """
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        for index, node in enumerate(marked.graph.node):
            node.name = f"@{index}@"
        with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
            times = self._run(marked, Path(scratch))
            executed = onnx.load(Path(scratch) / "executed.onnx", load_external_data=False)
        return executed.graph, times

    def _run(self, model: onnx.ModelProto, scratch: Path) -> dict[str, float]:
        """Least milliseconds by the name of the node that ONNX Runtime executes."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it warns of what it writes
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "profile")
        options.optimized_model_filepath = str(scratch / "executed.onnx")
        session = ort.plain_session(model, options=options)
        feeds = dict(self._feeds(session))
        started, runs = time.perf_counter(), 0
        while runs <= LEAST_RUNS or time.perf_counter() - started < self._budget_s:
            ort.run(session, feeds)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text())
        found: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
                found[event["name"].removesuffix(_EVENT)].append(1e-3 * event["dur"])
        return {name: float(np.min(values[1:] or values)) for name, values in found.items()}


def marked_place(name: str) -> int | None:
    """Of the model's node that an executed node of this name was, if it was one."""
    mark = _MARK.search(name)
    return int(mark[1]) if mark else None


class _Executed:
    """The graph that ONNX Runtime executes, beside the names of the model's own nodes."""

    def __init__(self, graph: onnx.GraphProto, times: Mapping[str, float], names: list[str]) -> None:
        self.nodes, self.names = list(graph.node), names
        self.ms = [times.get(node.name, 0.0) for node in self.nodes]
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(index)

    def profile(self) -> Profile:
        spent: dict[str, float] = defaultdict(float)
        for index, ms in enumerate(self.ms):
            owner = self._owner(index)
            if owner is not None:
                spent[owner] += ms
        return Profile(dict(spent), list(self._regions()), sum(self.ms))

    def _name(self, index: int) -> str | None:
        place = marked_place(self.nodes[index].name)
        return None if place is None else self.names[place]

    def _owner(self, index: int) -> str | None:
        """The model's node that an executed node is, or serves: a change of layout belongs to the one before."""
        seen: set[int] = set()
        while index not in seen:
            seen.add(index)
            if (name := self._name(index)) is not None:
                return name
            before = [self.producer[name] for name in self.nodes[index].input if name in self.producer]
            after = [reader for name in self.nodes[index].output for reader in self.readers[name]]
            index = (before or after or [index])[0]
        return None

    def _regions(self) -> Iterator[Region]:
        integer = self._integer_tensors()
        group = list(range(len(self.nodes)))

        def root(index: int) -> int:
            while group[index] != index:
                index = group[index]
            return index

        touched: set[int] = set()
        for name in integer:
            ends = [self.producer[name], *self.readers[name]]
            touched.update(ends)
            for end in ends[1:]:
                group[root(end)] = root(ends[0])
        members: dict[int, list[int]] = defaultdict(list)
        for index in sorted(touched):
            members[root(index)].append(index)
        for nodes in members.values():
            found = {own for index in nodes if (own := self._name(index)) is not None}
            yield Region(frozenset(found), sum(self.ms[index] for index in nodes))

    def _integer_tensors(self) -> set[str]:
        """Tensors of quantized values: what is quantized, and what operators make of it without leaving integers."""
        integer: set[str] = set()
        for node in self.nodes:  # in the order of execution
            if node.op_type.startswith(WRITES_INTEGERS) or (
                node.op_type not in FROM_INTEGERS and node.input and node.input[0] in integer
            ):
                integer.update(name for name in node.output if name)
        return integer
