"""What the compiler wrote: an ONNX file whose nodes EPContext stand for programs of the chip, and a record of what
became of each node.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

NODE = "EPContext"
PROVIDER = "QNNExecutionProvider"
"""Begins the operators that ONNX Runtime makes of parts that the chip takes."""
CONTEXT, BINARY = "model_ctx.onnx", "model_ctx_qnn.bin"
"""The binary's name follows from the other's, and stands in it."""
TRACE_FOLDER, TRACE = "trace", "qnn_op_trace.json"
FOR_CHIPS = "ep_compatibility_info.QNNExecutionProvider"
"""Metadata of the file: VERSION:..:SDK:..:ARCHITECTURES:MODELS:VTCM:..., lists by comma (QNN 2.51)."""
_LISTED = re.compile(r"\{ name: (.*?), type: (\w+) \}")
_AGAIN = re.compile(r"\w+ node `[^`]*` will not be assigned to QNN EP\.?")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Left:
    """A node that stays on the CPU. `node`: of the user's model, as far as it can be found; `op` its operator; `reason`:
    the compiler's, empty if it gives none.
    """

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"'{self.node}' ({self.op})"


def is_context(path: Path) -> bool:
    """Whether an ONNX file is of this kind, from its first bytes: nodes come before weights."""
    try:
        with path.open("rb") as file:
            return NODE.encode() in file.read(1 << 16)
    except OSError:
        return False


def programs(model: onnx.ModelProto) -> int:
    return sum(node.op_type == NODE for node in model.graph.node)


def binaries(model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold the programs, beside the context file; none of one that embeds them."""
    found: dict[str, None] = {}
    for node in model.graph.node:
        values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == NODE and not values.get("embed_mode", 1):
            found[values["ep_cache_context"].decode()] = None
    return list(found)


def models_of(model: onnx.ModelProto) -> list[int]:
    """`soc_model` of each chip that the file is for; empty if it does not say."""
    said = next((entry.value for entry in model.metadata_props if entry.key == FOR_CHIPS), "")
    fields = said.split(":")
    try:
        return [int(number) for number in fields[5].split(",")]
    except (IndexError, ValueError):
        return []


def left_behind(folder: Path, model: onnx.ModelProto, log: str = "") -> list[Left]:
    """Nodes that the compiler left to the CPU, of what it wrote into the folder and the log before it refused `model`."""
    reasons = {entry["node_name"]: entry for entry in _trace(folder).get("unsupported_nodes") or []}
    nodes: dict[str, tuple[str, Sequence[str]]] = {
        name: (entry["op_type"], ()) for name, entry in reasons.items()
    } or _logged(log)
    context = folder / CONTEXT
    if context.is_file():
        written = onnx.load(context, load_external_data=False).graph.node
        nodes = {node.name: (node.op_type, node.output) for node in written if node.op_type != NODE}
    nodes = {name: found for name, found in nodes.items() if not found[0].startswith(PROVIDER)}
    names = _Names(model)
    left = []
    for name, (op, outputs) in nodes.items():
        node, its_op = names.of(name, op, outputs)
        reason = _tidied(reasons.get(name, {}).get("reason", ""))
        if reason and op == "DequantizeLinear" != its_op:
            reason = f"its weight or bias stays on the CPU: {reason}"
        left.append(Left(node, its_op, reason))
    return sorted(dict.fromkeys(left), key=lambda one: names.place(one.node))


def _logged(log: str) -> dict[str, tuple[str, Sequence[str]]]:
    """Nodes by name, of the last line of the log that lists some."""
    lines = [line for line in log.splitlines() if "Unsupported nodes" in line]
    return {name: (op, ()) for name, op in _LISTED.findall(lines[-1])} if lines else {}


def _tidied(reason: str) -> str:
    """Without what repeats the node's name."""
    return " ".join(_AGAIN.sub("", reason).replace("`", "'").split()).rstrip(".")


def _trace(folder: Path) -> Mapping[str, Any]:
    """The compiler's record; empty without one, as versions before 2.3 leave none."""
    try:
        return dict(json.loads((folder / TRACE_FOLDER / TRACE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


class _Names:
    """Finds the nodes of a model that nodes of ONNX Runtime's graph were made of."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name or node.output[0]: node for node in model.graph.node if node.output}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.places = {name: place for place, name in enumerate(self.nodes)}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def place(self, name: str) -> int:
        return self.places.get(name, len(self.places))

    def of(self, name: str, op: str, outputs: Sequence[str]) -> tuple[str, str]:
        """(name, operator). ONNX Runtime adds to names what it makes of nodes, and keeps those of tensors; a
        DequantizeLinear of a weight is its layer's.
        """
        known = self.nodes.get(name)
        if known is None:
            known = next((self.makers[tensor] for tensor in outputs if tensor in self.makers), None)
        if known is None and not name:
            alike = [node for node in self.nodes.values() if node.op_type == op]
            known = alike[0] if len(alike) == 1 else None
        if known is None:
            start = max((one for one in self.nodes if name.startswith(one)), key=len, default="")
            known = self.nodes.get(start)
        if known is None:
            return name or "one without a name", op
        reader = self._layer(known) if known.op_type == "DequantizeLinear" else None
        found = reader or known
        return found.name or found.output[0], found.op_type

    def _layer(self, decoder: onnx.NodeProto) -> onnx.NodeProto | None:
        """The layer that reads a dequantized weight."""
        able = (
            node
            for node in self.readers.get(decoder.output[0], [])
            if node.op_type in LAYERS and decoder.output[0] in node.input[1:]
        )
        return next(able, None)
