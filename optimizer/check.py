"""What a target makes of a model: nodes that it refuses, and which layers really run in INT8."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import diagnosis
from onnx_lathe.optimizer.build import configured_targets, lower
from onnx_lathe.optimizer.opening import open_file
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.step import crashes_named
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.targets.core.base import LayerVerdict
from onnx_lathe.runtime.targets.core.registry import targets

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Check:
    """What one target makes of the model."""

    target: str
    layers: Sequence[LayerVerdict]
    refused: Sequence[tuple[str, str, str]] = ()
    """(node, operator, reason) of what the target cannot compute: a build would fail."""

    @property
    def int8(self) -> int:
        return sum(layer.int8 for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "int8_layers": self.int8,
            "layers": [asdict(layer) for layer in self.layers],
            "refused": [{"node": node, "op": op, "reason": reason} for node, op, reason in self.refused],
        }


def check(path: Path, calls: Sequence[Call], fix_inputs: Mapping[str, Any] = NOTHING) -> list[Check]:
    """Lowers the model for each target and asks it about every layer. The targets need not be available here.

    fix_inputs: values of inputs that are looked at as constants. A reason that the lowering gives, such as a layer that
    it left in float, comes before the target's own.
    Raises ModelError for a file that cannot be read, UsageError for a target that is unknown or only writes
    a file, TargetError where the target finds that the model cannot be run at all.
    """
    if not calls:
        raise UsageError("no target is named; see: optimize targets")
    opened = configured_targets(calls)
    for target, _ in opened:
        if target.placement is None:
            able = ", ".join(name for name, known in targets().items() if known.placement is not None)
            raise UsageError(
                f"target '{target.name}' writes a file and runs nothing; name what will run it: {able}"
            )
    model = open_file(path, Wishes(fix_inputs=fix_inputs)).model
    diagnosis.refuse_broken(path, model)
    for target, config in opened:
        target.accepts(model, config)
    found = []
    for target, config in opened:
        lowered, report = lower(target, config, model, Context())
        reasons = {skip.node: skip.reason for skip in report.skips}
        with crashes_named(f"as target {target.name} wants it", target.name):
            verdicts = target.layers(lowered, config)
            refused = target.refusals(lowered, config)
        layers = [
            layer
            if layer.int8 or layer.node not in reasons
            else LayerVerdict(layer.node, layer.op, False, reasons[layer.node])
            for layer in verdicts
        ]
        found.append(Check(target.name, layers, refused))
    return found
