"""Section convert of phone.py."""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import networks_judge as judge
import numpy as np
from phone_networks import Network, networks

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn.session import open_files

RECIPES = {
    "float": "fold",
    "svd": "fold,svd(macs=0.7)",
    "channels": "fold,prune_channels(sparsity=0.25)",
    "codebook": "fold,codebook(bits=4)",
    "int8": "fold,int8",
}


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
        floats = 0
        for name, recipe in RECIPES.items():
            kept = options.out / network.name / f"{name}.json"
            kept.parent.mkdir(exist_ok=True)
            if not kept.exists():
                kept.write_text(json.dumps(asdict(_row(network, name, recipe, options.out))))
            row = Row(**json.loads(kept.read_text()))
            floats = row.size if name == "float" else floats
            print(_line(row, floats), flush=True)


def _row(network: Network, name: str, recipe: str, out: Path) -> Row:
    place = out / network.name / name
    shutil.rmtree(place, ignore_errors=True)
    row = Row(network.name, name)
    arguments = [str(network.model), "--passes", recipe, "--target", "ncnn", "--threads", "1", "--no-latency"]
    arguments += ["--calibration", f"{network.data}:calibration", "--eval", f"{network.data}:evaluation"]
    ran = judge.run(arguments, place)
    row.code, row.message = ran.code, ran.message
    targets = ran.report.get("targets", []) if ran.report else []
    if targets and not targets[0]["error"]:
        details = targets[0]["details"]
        row.error, row.allowed = details["verified"]["relative_error"], details["verified"]["allowed"]
        row.size, row.int8_layers = targets[0]["size_bytes"], details["int8_layers"]
        if name == "int8":
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
    share = f"{row.size / floats:.2f}" if floats else ""
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
