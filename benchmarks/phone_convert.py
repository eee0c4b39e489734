"""Section convert of phone.py."""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import networks_judge as judge
import numpy as np
from phone_networks import Network, networks

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn.session import open_files

RECIPES = {
    "float": ("fold", "ncnn"),
    "svd": ("fold,svd(macs=0.7)", "ncnn"),
    "channels": ("fold,prune_channels(sparsity=0.25)", "ncnn"),
    "codebook": ("fold,codebook(bits=4)", "ncnn"),
    "int8": ("fold,int8", "ncnn"),
    "int8-half": ("fold,int8", "ncnn(storage=float16)"),
}
"""Passes and target by name."""
SMALLER = {
    "int8-depthwise": ("fold,int8", "ncnn(profile=arm64-int8,storage=float16)"),
    "int8-tables": ("fold,codebook(bits=8),int8", "ncnn(storage=float16)"),
}
"""Tried where the files of INT8 are above `SHARE`."""
SHARE = 0.27
"""What INT8 files may take of float's."""


@dataclass
class Row:
    """`error`: largest difference to ONNX Runtime, relative; of int8 the distance relative to the length."""

    network: str
    recipe: str
    code: int = 0
    message: str = ""
    error: float | None = None
    allowed: float | None = None
    size: int = 0
    int8_layers: int = 0
    cosine: dict[str, float] = field(default_factory=dict)
    """Worst output's, to the float network: ncnn's, and ONNX Runtime's of the same Q/DQ graph."""


def convert(options: argparse.Namespace) -> None:
    print(
        "| network | recipe | difference to ONNX Runtime | allowed | .param + .bin | of float | INT8 layers | cosine in ncnn | in ONNX Runtime |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for network in networks(options):
        rows: dict[str, Row] = {}
        for name, recipe in (RECIPES | SMALLER).items():
            if name in SMALLER and _is_small(rows):
                continue
            row = _kept(network, name, recipe, options.out)
            if not _is_known(row, rows):
                print(_line(row, rows["float"].size if rows else row.size), flush=True)
            rows[name] = row


def _is_small(rows: Mapping[str, Row]) -> bool:
    """Whether an INT8 file is within `SHARE` already, or none can be told."""
    sizes = [row.size for name, row in rows.items() if name.startswith("int8") and row.size]
    return not sizes or min(sizes) <= SHARE * rows["float"].size


def _is_known(row: Row, rows: Mapping[str, Row]) -> bool:
    """Whether storing in another way changed nothing: no weight is left in float."""
    sizes = [one.size for name, one in rows.items() if name.startswith("int8")]
    return row.recipe.startswith("int8") and bool(row.size) and row.size in sizes


def _kept(network: Network, name: str, recipe: tuple[str, str], out: Path) -> Row:
    """The row, measured or as an earlier run left it."""
    path = out / network.name / f"{name}.json"
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
        row.error, row.allowed = details["verified"]["relative_error"], details["verified"]["allowed"]
        row.size, row.int8_layers = targets[0]["size_bytes"], details["int8_layers"]
        if name.startswith("int8"):
            row.cosine = _cosines(network, place)
    shutil.rmtree(place, ignore_errors=True)
    return row


def _cosines(network: Network, place: Path) -> dict[str, float]:
    """Of the evaluation samples, to the float network."""
    with np.load(network.data) as arrays:
        feeds = {
            key.removeprefix("evaluation/"): arrays[key] for key in arrays if key.startswith("evaluation/")
        }
    step = max((place / "steps").glob("*.onnx"))
    rows = len(next(iter(feeds.values())))
    sessions = {
        "float": ort.session(network.model),
        "ort": ort.session(step),
        "ncnn": open_files(place / "model.ncnn.param"),
    }
    names = [one.name for one in sessions["float"].get_outputs()]
    outputs: dict[str, list[list[np.ndarray]]] = {
        label: [
            session.run(names, {name: values[row : row + 1] for name, values in feeds.items()})
            for row in range(rows)
        ]
        for label, session in sessions.items()
    }
    return {label: _worst(outputs[label], outputs["float"]) for label in ("ncnn", "ort")}


def _worst(found: list[list[np.ndarray]], wanted: list[list[np.ndarray]]) -> float:
    """The smallest cosine of an output, over all samples."""
    values = []
    for place in range(len(wanted[0])):
        one, other = (
            np.concatenate([np.ravel(row[place]) for row in rows]).astype(np.float64)
            for rows in (found, wanted)
        )
        length = float(np.linalg.norm(one) * np.linalg.norm(other))
        values.append(float(one @ other) / length if length else 1.0)
    return min(values)


def _line(row: Row, floats: int) -> str:
    if row.code:
        return f"| {row.network} | {row.recipe} | exit {row.code}: {row.message} | | | | | | |"
    share = f"{row.size / floats:.3f}" if floats else ""
    cosines = [f"{row.cosine[label]:.5f}" if label in row.cosine else "" for label in ("ncnn", "ort")]
    cells = [
        row.network,
        row.recipe,
        f"{row.error:.1e}",
        f"{row.allowed:.0e}",
        f"{row.size / 1e6:.2f} MB",
        share,
    ]
    return "| " + " | ".join([*cells, str(row.int8_layers or ""), *cosines]) + " |"
