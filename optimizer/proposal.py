"""`optimize init`: writes a commented recipe that fits a model and its data, and runs as it is."""

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.artifacts import files_of, same_file
from onnx_lathe.optimizer.looking import Facts, look
from onnx_lathe.optimizer.proposal_text import text_of
from onnx_lathe.optimizer.recipe import Recipe, override, parse_calls
from onnx_lathe.runtime.files.writing import replacing

PLACES = ("data", "train", "calibration", "eval", "classes")
"""Of a recipe, what is a path."""


@dataclass(frozen=True)
class Proposal:
    """`path`: where the recipe was written; `text`: what it says; `facts`: what it follows from."""

    path: Path
    text: str
    facts: Facts

    @property
    def command(self) -> str:
        """Which runs it."""
        return shlex.join(["optimize", self.facts.model.as_posix(), "--recipe", self.path.as_posix()])

    def as_json(self) -> dict[str, Any]:
        layers = self.facts.layers
        return {
            "recipe": str(self.path),
            "command": self.command,
            "text": self.text,
            "targets": [str(target) for target in self.facts.targets],
            "metrics": sorted(self.facts.metrics),
            "data": list(self.facts.roles.notes),
            "int8_layers": list(layers.taken),
            "float_layers": [asdict(skip) for skip in layers.left],
        }


def init(
    model: str | Path,
    *,
    data: str | None = None,
    train: str | None = None,
    calibration: str | None = None,
    eval: str | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    targets: str | None = None,
    out: str | Path = "recipe.toml",
    force: bool = False,
) -> Proposal:
    """Writes a recipe for the model, which `optimize(model, recipe=out)` runs as it is. The recipe names the data by
    paths from its own folder.

    Raises UsageError for an `out` that is there already, unless `force`, and that is read here, always; ModelError and DataError for a model and
    data that cannot be read or do not fit each other.
    """
    path, out = Path(model), Path(out)
    if out.exists() and not force:
        raise UsageError(f"{out}: is there already; --force overwrites it, --out names another file")
    recipe = override(
        Recipe(), data=data, train=train, calibration=calibration, eval=eval, preprocess=preprocess, classes=classes
    )  # fmt: skip
    given = {role: place for role in PLACES if (place := getattr(recipe, role)) is not None}
    for read in (path, *(one for place in given.values() for one in files_of(place))):
        if same_file(out, read):
            raise UsageError(f"{out}: is read here as {read}; write the recipe to another file")
    facts = look(path, recipe, None if targets is None else parse_calls(targets, "--target"))
    places = {role: beside(out, str(place)) for role, place in given.items()}
    text = text_of(facts, places | ({} if preprocess is None else {"preprocess": preprocess}), out)
    with replacing(out) as file:
        file.write(text.encode())
    return Proposal(out, text, facts)


def beside(recipe: Path, spec: str) -> str:
    """The path as it is written in a recipe: from the recipe's folder."""
    given = Path(spec).expanduser()
    return str(given) if given.is_absolute() else Path(os.path.relpath(spec, recipe.parent)).as_posix()
