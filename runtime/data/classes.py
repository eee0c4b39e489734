"""Which class folder has which index: by number where all names are numbers, by a file that says so, else by text.

folders 2, 10, 11          -> 0, 1, 2          (as text 10 and 11 would come before 2)
folders cat, dog           -> 0, 1
--classes FILE             -> the line of the name, from 0 on
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_lathe.errors import DataError, nearest


@dataclass(frozen=True)
class ClassNames:
    """The names in a file given by --classes, in the order of their indices."""

    path: Path
    names: tuple[str, ...]


def read_classes(path: str | Path) -> ClassNames:
    """One name a line; spaces around it and empty lines at the end do not count. Raises DataError with the line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--classes {path}: is no UTF-8 text; write one class name a line") from error
    except OSError as error:
        raise DataError(f"--classes {path}: cannot be read: {error.strerror or error}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"--classes {path}: is empty; write one class name a line")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"--classes {path}: line {number} is empty, and the lines' order gives the indices"
            )
        if name in first:
            raise DataError(f"--classes {path}: lines {first[name]} and {number} are both '{name}'; keep one")
        first[name] = number
    return ClassNames(path, tuple(names))


def in_order(folder: Path, found: Iterable[str], given: ClassNames | None) -> list[str]:
    """The names of the class folders in the order of their indices. Raises DataError for a folder that the file
    does not name, and for a name without a folder.
    """
    names = sorted(found)
    if given is None:
        numbers = all(re.fullmatch(r"[0-9]+", name) for name in names)
        return sorted(names, key=lambda name: (int(name), name)) if numbers else names
    for name in names:
        if name not in given.names:
            hint = nearest(name, given.names)
            raise DataError(
                f"{folder}: the class folder '{name}' is not in {given.path}{hint or '; add its line'}"
            )
    for name in given.names:
        if name not in names:
            hint = nearest(name, names) or f"; make an empty one if it has no pictures: {folder / name}"
            raise DataError(f"{folder}: the class '{name}' of {given.path} has no folder{hint}")
    return list(given.names)


def order_note(names: Sequence[str]) -> str:
    """What a report says of the order: "3 classes, from '2' (index 0) to '11' (index 2)"."""
    return f"{len(names):,} classes, from '{names[0]}' (index 0) to '{names[-1]}' (index {len(names) - 1})"


def order_warning(folder: Path, names: Sequence[str], given: ClassNames | None) -> str | None:
    """Names that end in numbers, sorted as text: class_10 stands before class_2."""
    natural = sorted(names, key=_natural)
    if given is not None or natural == list(names) or all(name.isdecimal() for name in names):
        return None
    at = next(place for place, (one, other) in enumerate(zip(names, natural, strict=True)) if one != other)
    return (
        f"{folder}: class folders are sorted as text, so '{names[at]}' has index {at} and stands before '{natural[at]}'; "
        "if the model counts them otherwise, give --classes FILE with one name a line"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]
