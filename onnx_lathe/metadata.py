"""Names of Lathe's metadata in a model, the only information beside the graph, and how `lathe.sparse` is
written.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from onnx_lathe.errors import ModelError

PASS = "lathe.pass"
"""Node metadata: the name of the pass that made the node."""

SPARSE = "lathe.sparse"
"""Model metadata: JSON object, name of a float tensor -> pattern ("unstructured" or "N:M"), for zeros that
must stay.
"""

RANGE = "lathe.range"
"""Calibrated ranges. On a QuantizeLinear: JSON list [minimum, maximum], of the tensor before quantization. On any other
node: JSON object, name of an output of the node -> [minimum, maximum], for a target that stores every tensor in
INT8. On the model: the same, of its inputs.
"""

CONV_ALGORITHM = "lathe.conv_algorithm"
"""Conv metadata: direct, winograd23, winograd43 or winograd63."""

CONV_PRECISION = "lathe.conv_precision"
"""Conv metadata: "float32" if the layer is to sum in float32, by direct convolution, where the runtime
would in less.
"""

INT8 = "lathe.int8"
"""Layer metadata: "asked" if a user's option named the layer for INT8; no lowering then takes it for one
that others wanted.
"""


def read_sparse(entries: Iterable[Any]) -> dict[str, str]:
    """`lathe.sparse` of `model.metadata_props`: tensor name -> pattern; empty without an entry.

    Raises ModelError if the entry is malformed.
    """
    for entry in entries:
        if entry.key == SPARSE:
            return parse_sparse(entry.value)
    return {}


def parse_sparse(text: str) -> dict[str, str]:
    """The mapping that `format_sparse` wrote. Raises ModelError if it is not a JSON object of strings."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ModelError(
            f"metadata {SPARSE} is not JSON ({error}); remove the entry or restore it"
        ) from error
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ModelError(
            f"metadata {SPARSE} must map tensor names to patterns; remove the entry or restore it"
        )
    return value


def format_sparse(tensors: Mapping[str, str]) -> str:
    """The text of `lathe.sparse`, sorted by tensor name."""
    return json.dumps(dict(sorted(tensors.items())))


def parse_ranges(text: str | None) -> dict[str, tuple[float, float]]:
    """Tensor -> (minimum, maximum), of a `lathe.range` that names tensors; empty for none, and for that of a
    QuantizeLinear.

    Raises ModelError if it is neither.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ModelError(f"metadata {RANGE} is not JSON ({error}); remove the entry or restore it") from error
    if _is_range(value):
        return {}
    if not isinstance(value, dict) or not all(map(_is_range, value.values())):
        raise ModelError(
            f"metadata {RANGE} must map tensors to [minimum, maximum]; remove the entry or restore it"
        )
    return {name: (float(low), float(high)) for name, (low, high) in value.items()}


def format_ranges(ranges: Mapping[str, tuple[float, float]]) -> str:
    """The text of `lathe.range` for these tensors, in their order."""
    return json.dumps({name: list(ends) for name, ends in ranges.items()})


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(end, int | float) and math.isfinite(end) for end in value)
    )
