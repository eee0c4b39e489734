"""What a search makes small: bytes, packed bytes, multiply-accumulates or milliseconds, of a candidate beside the original."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.measuring import sample_feeds
from onnx_lathe.runtime.data.kept import KeptSource
from onnx_lathe.runtime.pack.container import BEST, FAST, pack
from onnx_lathe.runtime.pack.files import onnx_bytes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.fed import fed

OBJECTIVES = ("size", "latency", "macs", "packed")
OF_THE_GRAPH = ("sparsity", "weights", "parameters", "macs")
LATENCY_S = 0.6
"""How long one candidate is timed, in turn with the original."""
UNDISTURBED = 0.1
"""Share of the rounds by whose slowest one a model is timed: where other programs take the processor in most rounds, their
median says when that was, of either model by chance, and an error of one trial ends all others.
"""
ROUNDS = 30
"""That are wanted, if undisturbed ones take no longer than LATENCY_S."""


class Costs:
    """Measures candidates of one original."""

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        data: KeptSource,
        threads: int,
        fixed: Mapping[str, np.ndarray],
    ) -> None:
        self.path, self.threads, self._data = path, threads, data
        self._model = model
        self._session = fed(ort.as_opened(path, threads), fixed)
        self._known: dict[str, float] = {}

    def base(self, name: str) -> float:
        """The original's own. Raises UsageError for what it has none of."""
        if name not in self._known:
            self._known[name] = self._of_original(name)
        return self._known[name]

    def of(self, model: onnx.ModelProto, names: Collection[str], exact: bool = False) -> dict[str, float]:
        """Of a candidate. `packed` is that of the fast coder unless `exact`; `latency` that of the original at
        first, times the ratio of undisturbed runs in turn.
        """
        found: dict[str, float] = {}
        if {"size", "packed"} & set(names):
            content = model.SerializeToString()
            found["size"] = float(len(content))
            if "packed" in names:
                found["packed"] = float(len(pack(content, None, BEST if exact else FAST)))
        if set(OF_THE_GRAPH) & set(names):
            found |= measure(model).as_metrics()
        if "latency" in names:
            found["latency"] = self.base("latency") * self._slower(model)
        return {name: value for name, value in found.items() if name in names}

    def _slower(self, model: onnx.ModelProto) -> float:
        """Milliseconds of the candidate, over those of the original."""
        candidate = ort.session(model, self.threads, guarded=False)
        feeds = sample_feeds(self._data, self._session, 1)
        pair = (self._session, candidate)
        rounds = ort.times(pair, feeds, budget_s=LATENCY_S)
        if len(rounds) < ROUNDS and ROUNDS * rounds.min(axis=0).sum() < 1e3 * LATENCY_S:
            more = ort.times(pair, feeds, budget_s=4 * LATENCY_S, most=ROUNDS)
            rounds = np.concatenate([rounds, more])
        base, new = np.quantile(rounds, UNDISTURBED, axis=0)
        return float(new / base)

    def _of_original(self, name: str) -> float:
        if name == "latency":
            feeds = sample_feeds(self._data, self._session, 1)
            return ort.latency_pair(self._session, self._session, feeds, budget_s=LATENCY_S)[0]
        if name == "packed":  # as gates have it: against the file as it is
            return float(onnx_bytes(self.path))
        if name == "size":
            return float(onnx_bytes(self.path))
        weighed = measure(self._model)
        known: Mapping[str, float] = weighed.as_metrics()
        if name not in known:
            raise UsageError(
                f"{self.path}: its {name} cannot be counted: {weighed.uncounted.get(name, 'unknown')}"
            )
        return known[name]
