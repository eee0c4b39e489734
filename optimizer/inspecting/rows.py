"""What `inspect` says of each node and of the whole model, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onnx_lathe.optimizer.inspect import LayerRow, Size


@dataclass(frozen=True)
class Gemm:
    """The matrix product that a layer is: `groups` times [d, k2c] by [k2c, n]. Of a convolution by im2col: d filters of
    k * k * c weights, at n output positions of all samples.
    """

    groups: int
    d: int
    k2c: int
    n: int

    def __str__(self) -> str:
        product = f"{self.d} x {self.k2c} x {self.n}"
        return product if self.groups == 1 else f"{self.groups} of {product}"


@dataclass(frozen=True)
class Energy:
    """In pJ, by the 45 nm table of energy.py. `dram`, `sram`: weights, inputs and outputs cross that memory once."""

    arithmetic: float
    dram: float
    sram: float

    @property
    def total(self) -> float:
        """All data in DRAM."""
        return self.arithmetic + self.dram


@dataclass(frozen=True)
class Training:
    """Bytes that one step of training holds for a node."""

    weights: int
    kept: int
    """Activations that the backward pass reads."""
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.gradients + self.optimizer


@dataclass(frozen=True)
class Row(LayerRow):
    """One node, or an input of the model, whose op is "Input". Figures are of all samples of the batch; None for what is
    not known.
    """

    counts: bool = False
    """It has weights or MACs."""
    activations: int | None = 0
    """Elements of its results that take memory of their own."""
    activation_bytes: int | None = 0
    input_bytes: int | None = 0
    """Of the activations that it reads."""
    memory_of: str = ""
    """The node whose result it overwrites, or looks at; empty for a result of its own."""
    of_shapes: bool = False
    """It computes on shapes alone."""
    bits: int | None = None
    """Of one weight as it is stored."""
    distinct: int | None = None
    """Different values among its weights."""
    intensity: float | None = None
    """MACs for each byte of weights, inputs and results."""
    gemm: Gemm | None = None
    redundancy: float | None = None
    """Elements that im2col makes over those of the input."""
    winograd: Mapping[str, int] = field(default_factory=dict)
    """Multiplications by algorithm, where it can be computed so."""
    energy: Energy | None = None
    training: Training | None = None
    ms: float | None = None
    ran_as: str = ""
    """Why it has no time of its own: the node that computes it too, or that it was folded."""

    @property
    def shown(self) -> bool:
        """Whether a table names it unasked: it has weights, MACs, or results in memory of their own."""
        return self.counts or not (self.memory_of or self.of_shapes or self.activations == 0)

    @property
    def sparsity(self) -> float | None:
        return self.zeros / self.weights if self.weights and self.zeros is not None else None

    @property
    def saved(self) -> Mapping[str, float]:
        """Direct multiplications over those of each algorithm of Winograd."""
        return {name: self.macs / count for name, count in self.winograd.items() if self.macs}

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {key: _plain(value) for key, value in vars(self).items()}
        if self.energy is not None:
            found["energy"] = {**vars(self.energy), "total": self.energy.total}
        if self.training is not None:
            found["training"] = {**vars(self.training), "total": self.training.total}
        return found | {"sparsity": self.sparsity, "winograd_saves": dict(self.saved)}


@dataclass(frozen=True)
class Whole(Size):
    """The totals. `weights` are parameters but those in vectors. What a figure leaves out is in `uncounted`."""

    weights: int = 0
    activations: int = 0
    activation_bytes: int = 0
    batch: int = 1
    energy: Energy | None = None
    winograd: Mapping[str, int] = field(default_factory=dict)
    """Multiplications of the whole model if each layer that can takes the algorithm."""
    training: Training | None = None
    gradient_peak_bytes: int | None = None
    """Gradients of activations: the largest inputs and results of one node."""
    ms: float | None = None
    """What all kernels take in turn."""
    unattributed_ms: float | None = None
    """Of that, what belongs to no node of the model."""
    operators: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def training_bytes(self) -> int | None:
        """All that a step of training holds."""
        return None if self.training is None else self.training.total + (self.gradient_peak_bytes or 0)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {key: _plain(value) for key, value in vars(self).items()}
        if self.energy is not None:
            found["energy"] = {**vars(self.energy), "total": self.energy.total}
        if self.training is not None:
            found["training"] = {**vars(self.training), "total": self.training_bytes}
        return found


class Inspection(NamedTuple):
    """(rows, totals)."""

    layers: list[Row]
    whole: Whole

    def as_json(self) -> dict[str, Any]:
        return {"layers": [row.as_json() for row in self.layers], "whole": self.whole.as_json()}


def _plain(value: Any) -> Any:
    if isinstance(value, Gemm | Energy | Training):
        return dict(vars(value))
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
