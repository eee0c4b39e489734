"""Names that Core ML and its compiler take: letters, digits and underscores, each name once."""

import re
from collections.abc import Collection, Iterable
from typing import Any

FORBIDDEN = re.compile(r"[^A-Za-z0-9_]")
LONGEST = 120
RESERVED = frozenset(
    [
        "any",
        "bool",
        "program",
        "func",
        "tensor",
        "list",
        "dict",
        "tuple",
        "true",
        "false",
        "string",
        "state",
        "bf16",
        "fp16",
        "fp32",
        "fp64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ]
)
"""Words of MIL's text form, which coremltools would give other names (mil/passes/defs/preprocess.py)."""


def settle(operations: Iterable[Any], fixed: Collection[int]) -> None:
    """Gives every variable a name of its own: coremltools names parameters, and the results of operations that have
    several, after the operation, and sees no clash. `fixed`: ids of variables that keep theirs.
    """
    listed = [one for op in operations for one in op.outputs]
    taken = {one.name for one in listed if id(one) in fixed}
    for one in listed:
        if id(one) in fixed:
            continue
        name, number = one.name, 1
        while one.name in taken:
            number += 1
            one.name = f"{name}_{number}"
        if len(one.op.outputs) == 1:
            one.op.name = one.name
        taken.add(one.name)


class Names:
    """The names that are given away."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, text: str) -> str:
        """The text as a name, with a number if it is taken."""
        plain = FORBIDDEN.sub("_", text)[:LONGEST] or "unnamed"
        plain = plain if plain[0].isalpha() else f"t{plain}"
        plain = f"{plain}_" if plain in RESERVED else plain
        name, number = plain, 1
        while name in self._taken:
            number += 1
            name = f"{plain}_{number}"
        self._taken.add(name)
        return name
