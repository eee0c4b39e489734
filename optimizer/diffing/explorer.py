"""Node data for Google's Model Explorer: the candidate's graph, coloured by how near each node is to the base.

The form is GraphNodeData of `model_explorer.node_data_builder` (ai-edge-model-explorer 0.1): `results` by node id, and
`thresholds` in ascending order, each the colour of values up to it. Ids are names of nodes, as the adapter
model-explorer-onnx has them; of a node without a name that of its first output, which Model Explorer matches too.
"""

import json
import math
from typing import Any

from onnx_lathe.optimizer.diffing.diff import Diff

CEILING_DB = 150.0
"""Of values that are equal: JSON has no infinity. It is beyond what float32 can tell apart."""
FLOOR_DB = -50.0
"""Of values that are not finite, or of another shape."""
COLOURS = ((FLOOR_DB, "#7f0000"), (10, "#d7301f"), (20, "#fc8d59"), (30, "#fdcc8a"), (40, "#fef0d9"), (CEILING_DB, "#d9f0d3"))  # fmt: skip


def node_data(found: Diff) -> str:
    """The JSON document. A node's value is the dB of its worst result, between FLOOR_DB and CEILING_DB."""
    worst: dict[str, float] = {}
    for one in found.tensors:
        key = one.node or one.name
        worst[key] = min(worst.get(key, math.inf), one.closeness)
    results = {key: {"value": round(_bounded(value), 2)} for key, value in worst.items()}
    thresholds: list[dict[str, Any]] = [
        {"value": value, "bgColor": colour, "textColor": "#000000"} for value, colour in COLOURS
    ]
    thresholds[0]["textColor"] = "#ffffff"
    document = {"results": results, "thresholds": thresholds}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _bounded(value: float) -> float:
    return min(max(value, FLOOR_DB), CEILING_DB)
