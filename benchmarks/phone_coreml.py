"""Section coreml of phone.py."""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import networks_judge as judge
from phone_networks import Network, networks

RECIPES = {
    "float": ("fold", "coreml"),
    "half": ("fold", "coreml(precision=float16)"),
    "codebook": ("fold,codebook(bits=4)", "coreml"),
    "zeros": ("fold,prune(sparsity=0.75)", "coreml"),
    "both": ("fold,prune(sparsity=0.75),codebook(bits=4)", "coreml(deployment=iOS18)"),
    "int8": ("fold,int8", "coreml"),
}
"""Passes and target by name."""
FLOORS = {"codebook": 0.14, "zeros": 0.32}
"""What the weights may take of float's."""


@dataclass
class Row:
    """`weights`: bytes of the package's weight file; `forms`: how many weights it holds in which form."""

    network: str
    recipe: str
    code: int = 0
    message: str = ""
    weights: int = 0
    operations: int = 0
    forms: dict[str, int] = field(default_factory=dict)


def coreml(options: argparse.Namespace) -> None:
    print("| network | recipe | operations | weights | of float | forms |")
    print("|---|---|---|---|---|---|")
    for network in networks(options):
        rows: dict[str, Row] = {}
        for name, recipe in RECIPES.items():
            rows[name] = _kept(network, name, recipe, options.out)
            print(_line(rows[name], rows), flush=True)


def _kept(network: Network, name: str, recipe: tuple[str, str], out: Path) -> Row:
    """The row, measured or as an earlier run left it."""
    path = out / network.name / f"coreml-{name}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(asdict(_row(network, name, recipe, out))))
    return Row(**json.loads(path.read_text()))


def _row(network: Network, name: str, recipe: tuple[str, str], out: Path) -> Row:
    place = out / network.name / name
    shutil.rmtree(place, ignore_errors=True)
    row = Row(network.name, name)
    passes, target = recipe
    arguments = [str(network.model), "--passes", passes, "--target", target, "--threads", "1", "--no-latency"]
    arguments += ["--calibration", f"{network.data}:calibration", "--eval", f"{network.data}:evaluation"]
    ran = judge.run(arguments, place)
    row.code, row.message = ran.code, ran.message
    targets = ran.report.get("targets", []) if ran.report else []
    if targets and not targets[0]["error"]:
        details = targets[0]["details"]
        row.weights, row.operations, row.forms = (
            details["weight_bytes"],
            details["operations"],
            details["weights"],
        )
    shutil.rmtree(place, ignore_errors=True)
    return row


def _line(row: Row, rows: Mapping[str, Row]) -> str:
    if row.code:
        return f"| {row.network} | {row.recipe} | exit {row.code}: {row.message} | | | |"
    floats = rows["float"].weights
    share = row.weights / floats if floats else 0.0
    told = f"{share:.3f}" + (" above its floor" if share > FLOORS.get(row.recipe, 2.0) else "")
    forms = ", ".join(f"{count} {kind.removeprefix('constexpr_')}" for kind, count in row.forms.items())
    cells = [row.network, row.recipe, str(row.operations), f"{row.weights / 1e6:.2f} MB", told, forms]
    return "| " + " | ".join(cells) + " |"
