"""Names of Lathe's metadata in a model, the only information beside the graph, and how `lathe.sparse` is
written.
"""

import json
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
"""QuantizeLinear metadata: JSON list [minimum, maximum], the calibrated range of the tensor before
quantization.
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
