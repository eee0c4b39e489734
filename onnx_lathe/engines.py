"""What TensorRT makes of a model, as far as the lowering for it and its targets both know it: said once for both."""

SYMMETRIC_ONLY = (
    "TensorRT takes INT8 with zero-point 0 only; quantize the float model with 'int8', or this one with "
    "'int8(existing=complete)'"
)
"""Why a pair of another kind is refused, and what to do."""

LONGEST_NAME = 4096
"""Bytes of a name of a node or tensor (TensorRT: "The given name exceeds the limit (4096 characters)")."""


def carries(name: str) -> bool:
    """Whether TensorRT takes the name as it is: a longer one it refuses, and a NUL character ends it."""
    return "\0" not in name and len(name.encode(errors="replace")) <= LONGEST_NAME


def says_nothing(dimension: str) -> bool:
    """Whether this is a name that converters give to sizes that they do not know, such as ?: dimensions that have it in
    common need not be equal.
    """
    return dimension in ("None", "unknown") or not any(character.isalpha() for character in dimension)
