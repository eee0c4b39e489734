"""Magnitude pruning: the weights of smallest magnitude become zero, and `lathe.sparse` says that their zeros must stay.

    Conv(x, W)   becomes   Conv(x, W')   with W' = W, but 0 for the round(sparsity * n) smallest |w|

scope=layer takes that fraction of every weight tensor; scope=global takes it of all of them together, by one threshold, so that layers
with many small weights give most. Zeros that are there already are the smallest of all: they count, and they stay. Ties go by position.
Source: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lathe import UsageError
from passes.base import Context, Pass, PassReport, option
from passes.graph import Graph
from passes.graph.layers import Weight, other_use, read, weights
from passes.graph.model import set_sparse_tensors, sparse_tensors
from passes.graph.patterns import by_weight
from passes.graph.storage import not_float, write_float
from passes.numerics.magnitude import smallest, with_zeros
from passes.registry import register


@register
class Prune(Pass):
    """Sets the weights of smallest magnitude to zero."""

    name = "prune"
    after = {"fold": "a folded batch normalization changes the magnitudes that are compared"}
    before = {
        "codebook": "a weight that shares its value cannot become zero alone",
        "int8": "the INT8 scales are chosen for the weights that are left",
    }

    @dataclass(frozen=True)
    class Config:
        sparsity: float = option(0.5, "fraction of zeros, below 1", low=0.0, high=1.0)
        scope: str = option("layer", "what has that fraction of zeros: every layer, or all together", choices=("layer", "global"))
        layers: dict[str, float] = option({}, "fraction for weights or layers by name pattern; 0 leaves one as it is", low=0.0, high=1.0)
        # What zeros save in 64 weights (256 bytes) is about what naming the tensor in lathe.sparse costs.
        min_size: int = option(64, "smaller weights are left as they are", unit="elements", low=1)

        def __post_init__(self) -> None:
            if max(self.sparsity, *self.layers.values(), 0.0) >= 1:
                raise UsageError("prune: a sparsity must be below 1; a layer of nothing but zeros computes nothing")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip))
        single = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "prune(layers=...)")
        groups: dict[str, tuple[float, list[Weight]]] = {}
        for weight in found:
            sparsity = single.get(weight.name, self.config.sparsity)
            if reason := self._refusal(graph, weight, sparsity):
                report.skip(weight.nodes[0].name, reason)
            else:
                pool = "" if self.config.scope == "global" and weight.name not in single else weight.name
                groups.setdefault(pool, (sparsity, []))[1].append(weight)
        sparse = sparse_tensors(graph)
        zeros = size = 0
        for sparsity, group in groups.values():
            for weight, before, after, of in _zero_smallest(group, sparsity):
                context.progress(f"pruned {weight.name}")
                zeros, size = zeros + after, size + of
                if after == 0:
                    report.skip(weight.nodes[0].name, "none of its weights is among the smallest")
                elif after == before and weight.name in sparse:
                    report.skip(weight.nodes[0].name, f"{after:,} of its {of:,} weights are zero already")
                else:
                    sparse.setdefault(weight.name, "unstructured")  # another pattern still holds: zeros have only been added
                    report.edit(weight.nodes[0].name, f"{after:,} of {of:,} weights are zero ({100 * after / of:.1f} %), {before:,} before")
        set_sparse_tensors(graph, sparse)
        if size:
            report.metrics["sparsity"] = zeros / size
        return report

    def _refusal(self, graph: Graph, weight: Weight, sparsity: float) -> str | None:
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = int(np.prod(weight.tensor.shape))
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if sparsity == 0:
            return "its sparsity is set to 0"
        if reason := other_use(graph, weight):
            return reason
        values = read(weight.tensor)
        return None if np.isfinite([values.min(), values.max()]).all() else "its weight has NaN or infinite elements"


def _zero_smallest(group: list[Weight], sparsity: float) -> Iterator[tuple[Weight, int, int, int]]:
    """Prunes the weights as one. Yields each with its zeros before and after, and its size; at any time one of them is in memory."""
    size = sum(int(np.prod(weight.tensor.shape)) for weight in group)
    arrays = [read(group[0].tensor)] if len(group) == 1 else _Stored(group)
    threshold = smallest(arrays, round(sparsity * size))
    for weight in group:
        values = arrays.pop() if isinstance(arrays, list) else read(weight.tensor)
        size, before = values.size, values.size - int(np.count_nonzero(values))
        data, threshold = with_zeros(values, threshold)
        del values
        after = size - int(np.count_nonzero(np.frombuffer(data, np.float32)))
        if after > before:
            write_float(weight.tensor, data)
        yield weight, before, after, size


@dataclass(frozen=True)
class _Stored:
    """The arrays of a group, read one by one every time they are gone through."""

    group: list[Weight]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read(weight.tensor) for weight in self.group)
