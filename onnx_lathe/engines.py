"""What TensorRT makes of a model, as far as the lowering for it and its targets both know it: said once for both."""

SYMMETRIC_ONLY = (
    "TensorRT takes INT8 with zero-point 0 only; quantize the float model with 'int8', or this one with "
    "'int8(existing=complete)'"
)
"""Why a pair of another kind is refused, and what to do."""


def says_nothing(dimension: str) -> bool:
    """Whether this is a name that converters give to sizes that they do not know, such as ?: dimensions that have it in
    common need not be equal.
    """
    return dimension in ("None", "unknown") or not any(character.isalpha() for character in dimension)
