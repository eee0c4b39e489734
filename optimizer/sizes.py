"""Sizes of memory as a user writes them: 2GiB, 512 MB, 65536."""

import re
from fractions import Fraction

from onnx_lathe.errors import UsageError

_UNITS = {"": 1, "b": 1, **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
          **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}}  # fmt: skip


def parse_bytes(text: str, what: str) -> int:
    """Bytes, rounded down. Raises UsageError naming `what` if the text is no size of at least one byte."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    size = 0 if match is None else int(Fraction(match[1]) * _UNITS.get(match[2], 0))
    if not 0 < size < 2**63:
        raise UsageError(f"{what} '{text}': give a size such as 2GiB, 512MiB, 1.5GB, or a number of bytes")
    return size
