"""The recipes that come with Lathe (models/recipes/), which `--recipe NAME` finds by name.

In the repository they lie in models/recipes/, in an installation beside this file (pyproject.toml).
"""

from collections.abc import Mapping
from pathlib import Path

from onnx_lathe.errors import UsageError, nearest

_HERE = Path(__file__).resolve().parent
PLACES = (_HERE / "recipes", _HERE.parent / "models" / "recipes")


def recipes() -> Mapping[str, Path]:
    """Name of every built-in recipe -> its file, to be given as `recipe` of `optimize`, or copied and changed."""
    return {
        path.stem: path
        for place in reversed(PLACES)
        if place.is_dir()
        for path in sorted(place.glob("*.toml"))
    }


def located(given: Path) -> Path:
    """The file that is meant: an existing one, else the built-in recipe of this bare name.

    Raises UsageError for a bare name that is neither.
    """
    if given.is_file() or given.suffix or len(given.parts) != 1:
        return given
    known = recipes()
    if given.name not in known:
        hint = nearest(given.name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"recipe '{given}': no such file or built-in recipe{hint}; see: optimize recipes")
    return known[given.name]


def summary(path: Path) -> str:
    """What a recipe's first comment says."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip()
