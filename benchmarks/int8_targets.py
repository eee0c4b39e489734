"""INT8 of real networks in the form of two targets: signal to noise of what TensorRT builds, beside ort's.

    python benchmarks/int8_targets.py [--networks FOLDER] [--only NAME ...] [--resume] [--out DIR]

Each network (networks_packages.py) is quantized once for each target, by defaults: `fold,int8` with 16 samples to
calibrate with and 32 others to judge by (networks_inputs.py). The figures are the report's, of the lowered
model, worst output first; `left in float` counts layers that the target's form gives back for its outputs' sake.
A network that reaches 20 dB for ort has to for TensorRT.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networks_judge as judge
import networks_packages as packages
from networks_real import INT8, _data

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("ort", "tensorrt-rtx")
FLOOR_DB = 20.0
LEFT = "in INT8 the outputs are at"
"""How the reason of such a layer begins."""
LONGEST = 80
"""Characters of what a target was refused for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=Path, help="folder of the networks (default: in --out)")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--resume", action="store_true", help="keep what is in --out")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "int8_targets", help="folder for results"
    )
    options = parser.parse_args()
    packages.PLACE[0] = options.networks or options.out / "networks"
    packages.PLACE[0].mkdir(parents=True, exist_ok=True)
    print(
        "| network | what | layers in INT8, ort | SQNR ort | layers in INT8, TensorRT | left in float | SQNR TensorRT |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    below = []
    for network in packages.REAL:
        if options.only and network.name not in options.only:
            continue
        model, folder = packages.fetched(network, packages.PLACE[0]), options.out / network.name
        folder.mkdir(parents=True, exist_ok=True)
        data = _data(network.inputs, folder)
        ort, trt = (_row(model, data, target, folder, options.resume) for target in TARGETS)
        print(f"| {network.name} | {network.what} | {_cells(ort)} | {_cells(trt, left=True)} |", flush=True)
        if (ort["sqnr"] or 0) >= FLOOR_DB > (trt["sqnr"] or 0):
            below.append(network.name)
    sys.exit(f"below {FLOOR_DB:g} dB for TensorRT alone: {', '.join(below)}" if below else 0)


def _row(model: Path, data: Path, target: str, folder: Path, resume: bool) -> dict[str, Any]:
    kept = folder / f"{target}.json"
    if not (resume and kept.exists()):
        out = folder / target
        shutil.rmtree(out, ignore_errors=True)
        parts = ["--calibration", f"{data}:calibration", "--eval", f"{data}:evaluation"]
        options = ["--passes", INT8, "--target", target, "--no-latency", "--threads", "1", *parts]
        ran = judge.run([str(model), *options], out)
        kept.write_text(json.dumps(_found(ran.report, ran.message if ran.code else ran.failure)))
        shutil.rmtree(out, ignore_errors=True)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _found(report: Mapping[str, Any], message: str) -> dict[str, Any]:
    target = (report.get("targets") or [{"quality": {}, "skips": []}])[0]
    return {
        "layers": report["steps"][-1]["metrics"].get("layers", 0) if report.get("steps") else 0,
        "sqnr": target["quality"].get("sqnr"),
        "left": sum(skip["reason"].startswith(LEFT) for skip in target["skips"]),
        "message": message,
    }


def _cells(row: Mapping[str, Any], left: bool = False) -> str:
    figure = row["message"][:LONGEST] or ("equal" if row["sqnr"] is None else f"{row['sqnr']:.1f} dB")
    cells = [f"{row['layers']:g}", *([str(row["left"])] if left else []), figure]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
