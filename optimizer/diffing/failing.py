"""The node at which a model that does not load, or does not run, fails: found by loading ever fewer of its nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.diffing.sides import Feeds
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.extraction.submodel import Flow, Part, flow, submodel
from onnx_lathe.runtime.running import ort


@dataclass(frozen=True)
class Failure:
    """The smallest part that fails, its inputs, and ONNX Runtime's reason. `node` fails last of it."""

    node: onnx.NodeProto
    part: Part
    inputs: dict[str, np.ndarray]
    reason: str


def failing_part(model: onnx.ModelProto, feeds: Feeds, ui: Ui) -> Failure | None:
    """None if every part of the model loads and runs: then what it declares of its inputs or outputs is wrong.

    Nodes before the failing one run, so its inputs are what the model itself computes. Raises ModelError where
    these cannot be computed.
    """
    whole = flow(model)
    taken = {name: feeds[name] for name in whole.inputs if name in feeds}

    def reason(nodes: Sequence[int]) -> str:
        ui.status(f"looking for the node that fails: {len(nodes)} nodes")
        return _refusal(_of_nodes(model, whole, nodes, {}), taken)

    count = len(whole.nodes)
    if not reason(range(count)):
        return None
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if reason(range(middle)):
            bad = middle
        else:
            good = middle
    return _smallest(model, whole, bad - 1, taken)


def _smallest(model: onnx.ModelProto, whole: Flow, last: int, feeds: Feeds) -> Failure | None:
    """The node alone if that fails, else with ever more of the nodes before it; None if not even all of them fail, with
    inputs of the sizes that they have.
    """
    before = [place for place in whole.needed(_outputs(whole, [last]), {})[0] if place != last]
    width = 0
    while True:
        nodes = [*(before[-width:] if width else []), last]
        own = {name for place in nodes for name in whole.nodes[place].output}
        fed = {
            name
            for place in nodes
            for name in whole.reads[place]
            if name not in own and name in whole.varying
        }
        values = _values(model, whole, fed, feeds)
        part = _of_nodes(model, whole, nodes, values)
        if why := _refusal(part, values):
            return Failure(whole.nodes[last], part, {name: values[name] for name in part.inputs}, why)
        if width >= len(before):
            return None
        width = min(2 * width or 1, len(before))


def _values(model: onnx.ModelProto, whole: Flow, names: set[str], feeds: Feeds) -> dict[str, np.ndarray]:
    found = {name: feeds[name] for name in names if name in feeds}
    if computed := sorted(name for name in names if name in whole.makers):
        part = submodel(model, whole, computed, {})
        found |= ort.run(_opened(part.model), {name: feeds[name] for name in part.inputs})
    return found


def _of_nodes(model: onnx.ModelProto, whole: Flow, nodes: Sequence[int], given: Feeds) -> Part:
    """With every result that no other of the nodes reads as an output; a node nobody reads computes too."""
    read = {name for place in nodes for name in whole.reads[place]}
    ends = [name for name in _outputs(whole, nodes) if name not in read]
    types = {name: value.dtype for name, value in given.items()}
    return submodel(model, whole, ends, types, {name: value.shape for name, value in given.items()})


def _outputs(whole: Flow, nodes: Sequence[int]) -> list[str]:
    return [name for place in nodes for name in whole.nodes[place].output if name]


def _refusal(part: Part, feeds: Feeds) -> str:
    """Why ONNX Runtime does not load or run it; empty if it does both."""
    try:
        ort.run(_opened(part.model), {name: feeds[name] for name in part.inputs})
    except ModelError as error:
        return str(error)
    return ""


def _opened(model: onnx.ModelProto) -> Any:
    """As `as_opened` does with a file."""
    try:
        return ort.plain_session(model)
    except ModelError:
        return ort.session(model)
