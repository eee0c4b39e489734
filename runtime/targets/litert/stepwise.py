"""Each operator by itself: ONNX Runtime computes it from what LiteRT's own kernels handed it, and the difference is counted
in steps of the stored result.

    q -> DQ -> Conv -> Q -> p -> DQ -> Add -> Q -> r      becomes
    q -> DQ -> Conv -> Q -> p/computed      p -> DQ -> Add -> Q -> r/computed       with p and r from LiteRT

So a step that one operator errs is not counted again for those behind it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.distances import largest
from onnx_lathe.runtime.targets.litert.running import XNNPACK, Opened
from onnx_lathe.runtime.targets.litert.sizing import Fitted
from onnx_lathe.runtime.targets.litert.tensors import Operator

COMPUTED = "/computed"
MOVERS = frozenset(
    [
        "CONCATENATION",
        "MAX_POOL_2D",
        "RESHAPE",
        "TRANSPOSE",
        "SLICE",
        "STRIDED_SLICE",
        "DEPTH_TO_SPACE",
        "SPACE_TO_DEPTH",
        "PAD",
        "PADV2",
        "MIRROR_PAD",
        "SPLIT",
        "SPLIT_V",
        "GATHER",
        "GATHER_ND",
        "EXPAND_DIMS",
        "SQUEEZE",
        "PACK",
        "UNPACK",
        "TILE",
        "BROADCAST_TO",
        "REVERSE_V2",
        "REDUCE_MAX",
        "REDUCE_MIN",
    ]
)
"""Hand levels on: not a single one may differ."""
AROUND = frozenset(["TRANSPOSE", "RESHAPE", "PAD", "PADV2", "SLICE", "EXPAND_DIMS", "SQUEEZE"])
"""Of them, those that stand around another operator of the same node."""
EXACT = frozenset(["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "ADD", "SUB", "MEAN"])
"""XNNPACK rounds them as ONNX does, but for values next to the middle between two levels."""
MOST_STEPS = {"RESIZE_BILINEAR": 2}
"""Of an operator; of others 1."""
MOST_STEPS_16 = 4
"""INT16 kernels multiply by a factor of 16 bits."""
SHARE_EXACT, SHARE = 0.01, 0.5
"""Of a tensor's values that may differ, of XNNPACK's EXACT operators and of others. Measured it is 1e-5, and up to 0.19."""
NEAR = 2e-3
"""Of a step: values so near to the middle between two levels are ties. They are many where the scale is a round number, or
a constant that is added lies there.
"""


@dataclass
class Steps:
    """Of all results of an operator: how many values differ by how many steps; `ties`: of those that do, how many lie in the
    middle between two levels. `worst`: (node, largest difference, share of values that differ and are no ties, type).
    """

    counts: Counter[int] = field(default_factory=Counter)
    ties: int = 0
    worst: list[tuple[str, int, float, str]] = field(default_factory=list)

    def as_record(self) -> dict[str, Any]:
        return {
            "values": sum(self.counts.values()),
            "differ": sum(count for step, count in self.counts.items() if step),
            "ties": self.ties,
            "steps": {str(step): self.counts[step] for step in sorted(self.counts)},
        }


def steps_by_operator(
    model: onnx.ModelProto, fitted: Fitted, opened: Opened, sample: Mapping[str, np.ndarray]
) -> dict[str, Steps]:
    """Operator of LiteRT -> its steps. `opened` keeps its tensors, and ran the sample last."""
    net = fitted.conversion.network
    writers = {place: one for one in net.operators for place in one.outputs}
    parts: dict[tuple[str, ...], list[str]] = {}
    for one in net.operators:
        parts.setdefault(one.nodes, []).append(one.code)
    places = {str(one["name"]): int(one["index"]) for one in opened.interpreter.get_tensor_details()}
    given: dict[str, np.ndarray] = {}
    by: dict[str, Operator] = {}
    for name in net.stored.activations:
        place = net.places.get(name)
        if place is None or place not in writers or net.tensors[place].name not in places:
            continue
        given[name] = opened.tensor(places[net.tensors[place].name])
        by[name] = writers[place]
    cut, sources = _cut(model, given)
    computed = ort.run(ort.session(cut, optimized=False), {**sample, **given})
    tables: dict[str, Steps] = {}
    for name, value in given.items():
        difference = np.abs(value.astype(np.int64) - computed[name + COMPUTED].astype(np.int64))
        differs = difference > 0
        scale = net.stored.activations[name][1].scales[0]
        tie = differs & _in_the_middle(computed.get(sources[name], sample.get(sources[name])), scale)
        code = _rounding(by[name].code, parts[by[name].nodes] if by[name].nodes else ())
        table = tables.setdefault(code, Steps())
        levels, counts = np.unique(difference, return_counts=True)
        table.counts.update(dict(zip(map(int, levels), map(int, counts), strict=True)))
        table.ties += int(tie.sum())
        label = by[name].nodes[0] if by[name].nodes else name
        share = float(np.mean(differs & ~tie)) if difference.size else 0.0
        table.worst.append((label, int(difference.max(initial=0)), share, str(value.dtype)))
    return tables


def _rounding(last: str, parts: Sequence[str]) -> str:
    """Of the operators that a node became, the one that rounds, or what the node is: a pool between Transposes."""
    if last not in MOVERS:
        return last
    rounding = [code for code in parts if code not in MOVERS]
    main = [code for code in parts if code not in AROUND]
    return [last, *main, *rounding][-1]


def _in_the_middle(values: np.ndarray | None, scale: float) -> np.ndarray:
    """Whether each value lies between two levels, up to rounding, where ONNX takes the even one."""
    if values is None:
        return np.zeros((), bool)
    levels = values.astype(np.float64) / scale
    return np.abs(levels - np.floor(levels) - 0.5) < NEAR


def _cut(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """(the model with each stored tensor as an input, and what computes it as an output of its own; stored tensor -> the
    float one that it is made of, an output too).
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    outputs, sources = [], {}
    for node in found.graph.node:
        for position, name in enumerate(node.output):
            if name in given:
                node.output[position] = name + COMPUTED
                outputs.append(name + COMPUTED)
                sources[name] = node.input[0]
    made = {name for node in found.graph.node for name in node.output}
    outputs += dict.fromkeys(name for name in sources.values() if name in made)
    del found.graph.output[:]
    del found.graph.value_info[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    for name, value in given.items():
        element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        found.graph.input.append(onnx.helper.make_tensor_value_info(name, element, value.shape))
    return found, sources


def check_steps(tables: Mapping[str, Steps], kernels: str) -> None:
    """Raises TargetError naming the node whose operator rounds otherwise than its kernel is known to."""
    for code, table in tables.items():
        for node, steps, share, kind in table.worst:
            most = 0 if code in MOVERS else MOST_STEPS_16 if kind == "int16" else MOST_STEPS.get(code, 1)
            exact = code in EXACT and kernels == XNNPACK and kind == "int8"
            allowed = 0.0 if most == 0 else SHARE_EXACT if exact else SHARE if most < MOST_STEPS_16 else 1.0
            several = share * sum(table.counts.values()) > 4  # of ten logits one is a tenth
            if steps > most or (share > allowed and several):
                raise TargetError(
                    f"node {node} ({code}) computes other levels in LiteRT than in ONNX Runtime: {100 * share:.2g} % of them differ, "
                    f"by up to {steps} steps, where {most} are rounding; nothing is written"
                )


def compare_tensors(
    model: onnx.ModelProto, fitted: Fitted, opened: Opened, sample: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Of every tensor of the graph that the file has, by operator: how many, and the largest difference relative to the
    tensor's largest value, with the node. `opened` keeps its tensors, and ran the sample last.
    """
    net = fitted.conversion.network
    writers = {place: one for one in net.operators for place in one.outputs}
    places = {str(one["name"]): int(one["index"]) for one in opened.interpreter.get_tensor_details()}
    names = [
        name for name, place in net.places.items() if place in writers and net.tensors[place].name in places
    ]
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    known = {value.name for value in looked.graph.output}
    made = {name for node in looked.graph.node for name in node.output}
    names = [name for name in names if name in made]
    looked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    wanted = ort.run(ort.session(looked, optimized=False), sample)
    found: dict[str, Any] = {}
    for name in names:
        place = net.places[name]
        value, code = opened.tensor(places[net.tensors[place].name]), writers[place].code
        error = largest(value.astype(np.float32), wanted[name].astype(np.float32))
        entry = found.setdefault(code, {"tensors": 0, "largest": -1.0, "node": ""})
        entry["tensors"] += 1
        if error > entry["largest"]:
            entry |= {"largest": error, "node": writers[place].nodes[0] if writers[place].nodes else name}
    return found
