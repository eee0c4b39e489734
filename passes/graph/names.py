"""Names that nothing else has."""

from collections.abc import Collection


def unused_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or it with the first free number behind, among `taken`."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name
