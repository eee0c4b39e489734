"""The few words that passes and runtime share: the exceptions, their hint, the names of Lathe's metadata, and what a target runs in INT8.

`passes` and `runtime` import neither each other nor `optimizer`, yet both raise errors of one root and both read
`lathe.sparse`; so these stand in a leaf module that imports neither.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PASS = "lathe.pass"
"""Node metadata: the name of the pass that made the node."""

SPARSE = "lathe.sparse"
"""Model metadata: JSON object, name of a float tensor -> pattern ("unstructured" or "N:M"), for tensors whose zeros must stay."""

RANGE = "lathe.range"
"""QuantizeLinear metadata: JSON list [minimum, maximum], the calibrated range of the tensor before quantization."""

CONV_ALGORITHM = "lathe.conv_algorithm"
"""Conv metadata: direct, winograd23, winograd43 or winograd63."""

INT8 = "lathe.int8"
"""Layer metadata: "asked" if a user's option named the layer for INT8; no lowering then takes it for one that others wanted."""


@dataclass(frozen=True)
class Placement:
    """What a target runs in INT8. As it stands it is TensorRT's, the canonical form's; a target declares its own.

    A layer reads its first input quantized, and a weight quantized per output channel.
    """

    layers: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul"})
    """Operators with weights that have an INT8 kernel which pays."""
    depthwise: bool = False
    joins: bool = True
    """Whether an addition behind a convolution becomes part of it when its other operand is quantized, and that one alone."""
    operators: frozenset[str] = frozenset()
    """Operators without weights that compute on integers, when all that they read and write is quantized."""
    passed: frozenset[str] = frozenset()
    """Operators that hand quantized values on, if what they write has the scale of what they read."""
    results: frozenset[str] = frozenset()
    """Operators among `layers` that compute in INT8 only if their result is quantized too."""
    unsigned: bool = False
    """Whether activations are UINT8 over their range, with a zero-point, instead of INT8 with zero-point 0."""

    def __str__(self) -> str:
        return ", ".join(f"{name}={sorted(value) if isinstance(value, frozenset) else value}" for name, value in vars(self).items())

    def __or__(self, other: "Placement") -> "Placement":
        """What one of two targets runs in INT8. An addition that one wants quantized whole is not joined; what they store is canonical
        unless both want it otherwise.
        """
        return Placement(
            self.layers | other.layers,
            self.depthwise or other.depthwise,
            self.joins or other.joins,
            self.operators | other.operators,
            self.passed | other.passed,
            self.results | other.results,
            self.unsigned and other.unsigned,
        )


CANONICAL = Placement()


class LatheError(Exception):
    """Root of every error that a user can mend. The message is one line: the file, node or option, and what to do."""

    exit_code = 2


class UsageError(LatheError):
    """Wrong option, recipe or combination of them."""


class ModelError(LatheError):
    """A model file that cannot be read, is invalid, or needs what is not supported."""


class DataError(LatheError):
    """Data that cannot be read or does not fit the model."""


class PassError(LatheError):
    """A pass that could not do its work, where skipping a node would not be an answer."""


class ContractError(LatheError):
    """A pass that broke the contract between passes: a defect of Lathe, not of the user's model."""

    exit_code = 1


class TargetError(LatheError):
    """A target that is not available here, or whose build failed."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'prune'?" or nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def read_sparse(entries: Iterable[Any]) -> dict[str, str]:
    """`lathe.sparse` of `model.metadata_props`: tensor name -> pattern; empty without an entry. Raises ModelError if malformed."""
    for entry in entries:
        if entry.key == SPARSE:
            return parse_sparse(entry.value)
    return {}


def parse_sparse(text: str) -> dict[str, str]:
    """The mapping that `format_sparse` wrote. Raises ModelError if it is not a JSON object of strings."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ModelError(f"metadata {SPARSE} is not JSON ({error}); remove the entry or restore it") from error
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ModelError(f"metadata {SPARSE} must map tensor names to patterns; remove the entry or restore it")
    return value


def format_sparse(tensors: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(tensors.items())))
