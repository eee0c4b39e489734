"""Post-training INT8 against its peers: the same calibration data, the same runtime (ONNX Runtime on the
CPU, one thread).

    python benchmarks/int8.py [accuracy calibration] --peers PEERS/bin/python [--only NETWORK ...] [--data-dir DIR] [--out DIR]

accuracy     seven networks, as each peer's settings quantize them and as Lathe does by default: what is lost, how much faster, what it took
calibration  time and memory of calibrating an EfficientNet-Lite0, by every method, against running the float network over the same data

--peers is the Python of an environment with int8_peers.txt; without it the peers are left out. Files that
are there are not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from int8_networks import Network, networks
from int8_peers import SETTINGS
from sets import ROOT, parser_of, run_sections

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.runtime.running import ort

OURS = {
    "Lathe": "fold, int8",
    "Lathe, equalized": "fold, equalize, int8",
    "Lathe, mse": "fold, int8(method=mse)",
    "Lathe, min_sqnr=20": "fold, int8(min_sqnr=20)",
    "Lathe, adaptive rounding": "fold, int8(rounding=adaptive)",
}
METHODS = ("minmax", "percentile", "entropy", "mse")
BATCH = 20


def main() -> None:
    sections = {"accuracy": accuracy, "calibration": calibration}
    parser = parser_of(__doc__, sections, "int8")
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment")
    parser.add_argument("--only", nargs="+", help="networks to measure")
    rows = [*SETTINGS, *OURS]
    parser.add_argument(
        "--settings", nargs="+", default=rows, choices=rows, metavar="S", help="rows to measure"
    )
    run_sections(parser, sections)


def accuracy(options: argparse.Namespace) -> None:
    for network in networks(options.out, options.data_dir):
        if options.only and network.name not in options.only:
            continue
        folder = options.out / network.name
        folder.mkdir(exist_ok=True)
        with np.load(network.data) as arrays:
            images = arrays[f"evaluation/{network.input}"]
            labels = arrays.get("evaluation/labels")
        reference = outputs(network.model, network.input, images)
        original = (
            ""
            if labels is None
            else f", top-1 {100 * np.mean(reference.argmax(-1) == labels):.2f} % in float"
        )
        print(f"\n{network.name}{original}, {len(images):,} samples\n")
        print(
            "| | points lost | agreement | SQNR | latency of float's | file of float's | seconds | peak memory |"
        )
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for name in options.settings:
            if name in SETTINGS and not options.peers:
                continue
            made = (
                by_peer(options.peers, name, network, folder)
                if name in SETTINGS
                else by_lathe(name, network, folder)
            )
            cells = (
                judged(made, network, images, labels, reference)
                if "file" in made
                else [made["failed"], *[""] * 6]
            )
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def judged(
    made: dict[str, Any],
    network: Network,
    images: np.ndarray,
    labels: np.ndarray | None,
    reference: np.ndarray,
) -> list[str]:
    try:
        found = outputs(made["file"], network.input, images)
    except ModelError as error:  # a peer's file that ONNX Runtime refuses is a result
        return [f"{str(error)[:120]}", *[""] * 6]
    lost = (
        100 * (np.mean(reference.argmax(-1) == labels) - np.mean(found.argmax(-1) == labels))
        if labels is not None
        else None
    )
    quality = signal_to_noise_db(reference, found)
    sessions = [ort.session(path, threads=1) for path in (network.model, made["file"])]
    slow, fast = ort.latency_pair(
        sessions[0], sessions[1], {network.input: images[:1]}, budget_s=4.0, most=2000
    )
    return [
        "" if lost is None else f"{lost:.2f}",
        f"{100 * np.mean(reference.argmax(-1) == found.argmax(-1)):.2f} %",
        f"{quality:.1f} dB",
        f"{fast / slow:.2f}",
        f"{Path(made['file']).stat().st_size / network.model.stat().st_size:.2f}",
        f"{made['seconds']:.1f}",
        f"{made['peak_mb']:.0f} MB",
    ]


def outputs(model: Path, source: str, images: np.ndarray) -> np.ndarray:
    """The first output over all images."""
    session = ort.session(model, threads=1)
    name = session.get_outputs()[0].name
    return np.concatenate(
        [ort.run(session, {source: images[i : i + BATCH]})[name] for i in range(0, len(images), BATCH)]
    )


def by_peer(python: Path, setting: str, network: Network, folder: Path) -> dict[str, Any]:
    """File, seconds and peak memory; or why it failed."""
    stem = setting.replace(", ", "-").replace(" ", "-")
    note, file = folder / f"{stem}.json", folder / f"{stem}.onnx"
    if not note.exists():
        script = Path(__file__).with_name("int8_peers.py")
        command = [
            str(python),
            str(script),
            setting,
            str(network.model),
            str(network.data),
            network.input,
            str(file),
        ]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, env=environment
        )
        lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines() or [
            f"exit code {run.returncode}"
        ]
        note.write_text(
            lines[-1] if run.returncode == 0 else json.dumps({"failed": f"failed: {lines[-1][:120]}"})
        )
    result: dict[str, Any] = json.loads(note.read_text())
    return result if "failed" in result else {**result, "file": file}


def by_lathe(name: str, network: Network, folder: Path) -> dict[str, Any]:
    out = folder / name.replace(", ", "-").replace(" ", "-")
    passes = OURS[name]
    record, peak = run_lathe(network, passes, out, "--target", "ort")
    note = out / "took.json"
    if record is not None:
        note.write_text(
            json.dumps({"seconds": sum(step["seconds"] for step in record["steps"]), "peak_mb": peak})
        )
    return {**json.loads(note.read_text()), "file": out / "model.ort.onnx"}


def run_lathe(network: Network, passes: str, out: Path, *more: str) -> tuple[dict[str, Any] | None, float]:
    """(run record, peak MB) of one command; None if its result is there already."""
    if (out / "took.json").exists():
        return None, 0.0
    command = [sys.executable, "-m", "onnx_lathe", str(network.model), "--passes", passes]
    command += [
        "--calibration",
        f"{network.data}:calibration",
        "--no-latency",
        "--json",
        "--quiet",
        "--out",
        str(out),
        *more,
    ]
    before = subprocess.run(
        [sys.executable, "-c", PROBE, "-c", "import onnx_lathe.optimizer.pipeline"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(
            f"{network.name}: optimize ended with exit code {run.returncode}: {run.stderr[-500:]}"
        )
    return json.loads(run.stdout), (kilobytes(run.stderr) - kilobytes(before.stderr.decode())) / 1024


PROBE = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def kilobytes(text: str) -> float:
    return float(next(line.split()[1] for line in reversed(text.splitlines()) if line.startswith("peak ")))


def calibration(options: argparse.Namespace) -> None:
    network = next(one for one in networks(options.out, options.data_dir) if one.name == "efficientnet-lite0")
    with np.load(network.data) as arrays:
        images = arrays[f"calibration/{network.input}"]
    session = ort.session(network.model)
    started = time.perf_counter()
    for index in range(0, len(images), 4):
        session.run(None, {network.input: images[index : index + 4]})
    plain = time.perf_counter() - started
    print(
        f"| EfficientNet-Lite0, {len(images)} images of 224 x 224 | seconds | times the float run | peak memory | floor |"
    )
    print("|---|---|---|---|---|")
    print(f"| running the float network, batches of 4 | {plain:.1f} | 1 | | |")
    for method in METHODS:
        out = options.out / network.name / f"calibrate-{method}"
        (out / "took.json").unlink(missing_ok=True)
        record, peak = run_lathe(network, f"fold, int8(method={method}, bias_correction=false)", out)
        assert record is not None
        taken = record["steps"][-1]["seconds"]
        print(
            f"| int8(method={method}) | {taken:.1f} | {taken / plain:.2f} | {peak:.0f} MB | 2 times and 2 s; 1 GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
