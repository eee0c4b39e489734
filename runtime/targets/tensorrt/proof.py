"""Proof of INT8: what TensorRT says of an engine's kernels, set against what the check promised of the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_lathe.errors import first_few
from onnx_lathe.runtime.targets.core.base import NOT_QUANTIZED
from onnx_lathe.runtime.targets.tensorrt.engine_layers import Kernel
from onnx_lathe.runtime.targets.tensorrt.promise import Promise

CONVOLUTIONS = ("Conv", "ConvTranspose")
NO_REASON = "TensorRT gives no reason"
UNNAMED = "no kernel multiplies for it: TensorRT has made a constant of it, or a part of another kernel"
UNSTATED = "TensorRT does not state the type that it is computed in"
MIXED = "its kernels are of several types"
UNREADABLE = (
    "TensorRT did not describe its layers in a form that is known here: which run in INT8 is not known"
)


@dataclass(frozen=True)
class Proven:
    """One layer. `type`: what the engine multiplies it in, None where that is not known; `reason`: why it is not
    INT8, or, where it is INT8 against the check's word, what the check said.
    """

    promise: Promise
    type: str | None
    reason: str

    @property
    def int8(self) -> bool:
        return self.type == "int8"

    def as_json(self) -> dict[str, Any]:
        return {
            "node": self.promise.name,
            "op": self.promise.op,
            "macs": self.promise.macs,
            "promised": self.promise.int8,
            "type": self.type,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Proof:
    """`source`: where the types come from, None where they could not be read, which `note` then says."""

    layers: Sequence[Proven]
    source: str | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Shares are fractions of the MACs, null where they are not known or there are none."""
        convolutions = [layer for layer in self.layers if layer.promise.op in CONVOLUTIONS]
        return {
            "source": self.source,
            "note": self.note,
            "convolutions": self._shares(convolutions),
            "layers": self._shares(self.layers),
            "each": [layer.as_json() for layer in self.layers],
        }

    def _shares(self, layers: Sequence[Proven]) -> dict[str, Any]:
        counted = [(layer, layer.promise.macs) for layer in layers if layer.promise.macs is not None]
        if len(counted) < len(layers):
            return {"macs": None, "promised": None, "int8": None, "kept": None}
        total = sum(macs for _, macs in counted)
        promised = sum(macs for layer, macs in counted if layer.promise.int8)
        kept = sum(macs for layer, macs in counted if layer.promise.int8 and layer.int8)
        int8 = sum(macs for layer, macs in counted if layer.int8)
        known = self.source is not None
        return {
            "macs": total,
            "promised": _share(promised, total),
            "int8": _share(int8, total) if known else None,
            "kept": _share(kept, promised) if known else None,
        }

    def facts(self) -> list[str]:
        """What the report says of it: one line, or none where nothing is known."""
        table = self.as_json()
        groups = (
            ("the convolutions' MACs", table["convolutions"]),
            ("all layers' MACs", table["layers"]),
        )
        parts = [
            f"{_percent(found['int8'])} of {what} ({_percent(found['promised'])} promised)"
            for what, found in groups
            if found["int8"] is not None and found["promised"] is not None
        ]
        return [f"in INT8, by {self.source}: {', '.join(parts)}"] if parts else []

    def warnings(self) -> list[str]:
        """Where promise and proof part, and what is not known."""
        said = [self.note] if self.note else []
        if self.source is None:
            return said
        groups: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.promise.int8 and not layer.int8:
                what = (
                    f"but the engine computes it in {layer.type}"
                    if layer.type
                    else "which the engine does not prove"
                )
                groups.setdefault(f"promised in INT8, {what}: {layer.reason}", []).append(layer.promise.name)
            elif layer.int8 and not layer.promise.int8:
                groups.setdefault(
                    f"computed in INT8, though the check says otherwise: {layer.reason}", []
                ).append(layer.promise.name)
        return said + [f"{first_few(names)}: {reason}" for reason, names in groups.items()]


def prove(promises: Sequence[Promise], kernels: Sequence[Kernel], source: str) -> Proof:
    """Looks every layer up among the kernels. Without any that names an ONNX node nothing is known of the engine."""
    by_node: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for name in kernel.nodes if kernel.multiplies else ():
            by_node.setdefault(name, []).append(kernel)
    if not any(kernel.nodes for kernel in kernels):
        return unreadable(promises)
    proven = [_proven(promise, by_node.get(promise.known_as, [])) for promise in promises]
    unknown = [promise.name for promise in promises if promise.macs is None]
    note = (
        f"MACs of {first_few(unknown)} are not known: no share is given of what they are part of"
        if unknown
        else ""
    )
    return Proof(proven, source, note)


def unreadable(promises: Sequence[Promise]) -> Proof:
    return Proof([Proven(promise, None, promise.reason) for promise in promises], None, UNREADABLE)


def _proven(promise: Promise, kernels: Sequence[Kernel]) -> Proven:
    own = [kernel for kernel in kernels if promise.known_as in kernel.named_after] or kernels
    types = {kernel.type for kernel in own}
    if not types:
        return Proven(promise, None, promise.reason or UNNAMED)
    if len(types) > 1:
        return Proven(promise, None, promise.reason or MIXED)
    (found,) = types
    if found is None:
        return Proven(promise, None, promise.reason or UNSTATED)
    if found == "int8":
        return Proven(promise, found, "" if promise.int8 else promise.reason)
    return Proven(promise, found, NO_REASON if promise.int8 else promise.reason or NOT_QUANTIZED)


def weight_facts(details: Mapping[str, Any]) -> list[str]:
    """The line of the report on the engine's weights; none where TensorRT does not say."""
    size = details["weights_bytes"]
    if size is None:
        return []
    unit, name = next((one for one in ((1e6, "MB"), (1e3, "kB")) if size >= one[0]), (1, "B"))
    return [f"weights in the engine: {float(f'{size / unit:.3g}'):g} {name}"]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
