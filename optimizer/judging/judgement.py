"""The verdicts on a candidate, and all that a reader of them should know: models, samples, kernels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from onnx_lathe.optimizer.report.record import GateRecord, plain


@dataclass(frozen=True)
class Judged:
    """One of the two models. `library`: what ran it, with its version; `device`: on what, if not this processor."""

    path: str
    library: str
    size_bytes: int
    metrics: Mapping[str, float]
    device: str = ""


@dataclass(frozen=True)
class Judgement(Sequence[GateRecord]):
    """A verdict per gate, in the order of the gates."""

    base: Judged
    candidate: Judged
    verdicts: Sequence[GateRecord]
    samples: int = 0
    data: Sequence[str] = ()
    """Sentences of where the samples come from."""
    notes: Sequence[str] = ()
    """Warnings."""
    confidence: float | None = None
    """Of the intervals whose worse end was judged; None if the estimates were."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    kernels: str = ""
    """Which kernels computed, in a line."""
    started: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    @overload
    def __getitem__(self, index: int) -> GateRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[GateRecord]: ...

    def __getitem__(self, index: int | slice) -> GateRecord | Sequence[GateRecord]:
        return self.verdicts[index]

    def __len__(self) -> int:
        return len(self.verdicts)

    def __iter__(self) -> Iterator[GateRecord]:
        return iter(self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """What `optimize gate --json` prints."""
        told = asdict(self)
        return plain({"passed": self.passed, "gates": told.pop("verdicts"), **told})


def kernel_path(processor: Mapping[str, Any], saturating: bool, libraries: Mapping[str, str]) -> str:
    """One line: two processors whose lines differ may give results that differ by rounding."""
    flags = processor.get("flags", ())
    wide = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp") if flag in flags]
    vectors = [flag for flag in ("avx512f", "avx2", "avx", "sve", "asimd") if flag in flags][:1]
    sums = "INT8 sums in 16 bits, which saturate" if saturating else "INT8 sums exact"
    runtime = libraries.get("onnxruntime", "unknown")
    words = [processor.get("machine", ""), *vectors, ", ".join(wide) or "no INT8 dot products", sums]
    return f"ONNX Runtime {runtime} on " + ", ".join(word for word in words if word)
