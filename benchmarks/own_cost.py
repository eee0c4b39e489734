"""What the command `optimize` itself costs beside the work of its passes.

    python benchmarks/own_cost.py [large small] [--network MODEL.onnx --data FILE.npz] [--pairs 3] [--out DIR]

large  a network of random weights with VGG-16's dense layers behind five convolutions, a file of 510 MB:
       fold,prune(sparsity=0.9),codebook(bits=4) on four random images with a gate. The most memory that the command
       and its children hold at one time, against the file's size, and time. Floors: 2.5 times and 20 s
small  fold,int8 on --network (EfficientNet-Lite0) with --data (100 photographs as the network takes them) beside
       quantize_static of ONNX Runtime with the same data, in turn, each in a process of its own, imports included.
       Floor: 1.5 times its time

Each runs on one thread (OMP_NUM_THREADS=1). Times are of the clock, and of the processor in brackets, children
included. Memory is read from /proc fifty times a second, on Linux alone: resident pages, those shared with other
processes counted for each.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import vgg16
from sets import ROOT, parser_of, run_sections

LARGE = "fold,prune(sparsity=0.9),codebook(bits=4)"
CONVOLUTIONS = (64, 0, 128, 0, 256, 0, 512, 0, 512, 0)
"""Output channels; 0 is a MaxPool."""
PEER = str(Path(__file__).with_name("own_cost_peer.py"))
PAUSE_S = 0.02
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """Of one command: seconds of the clock and of the processor, and bytes of all its processes at one time."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} s ({self.cpu_s:.1f} s), {self.peak_bytes / 1e6:,.0f} MB"


def main() -> None:
    sections = {"large": large, "small": small}
    parser = parser_of(__doc__, sections, "own_cost")
    parser.add_argument("--network", type=Path, help="for small: an ONNX model")
    parser.add_argument("--data", type=Path, help="for small: .npz of its input")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, in turn")
    run_sections(parser, sections)


def large(options: argparse.Namespace) -> None:
    vgg16.CONVOLUTIONS = CONVOLUTIONS
    model, data = options.out / "large.onnx", options.out / "large.npz"
    options.out.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        vgg16.make_model(model)
    if not data.exists():
        images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
        np.savez(data, image=images)
    gate = ["--eval", str(data), "--gate", "cosine >= 0.1"]
    size, costs = model.stat().st_size, []
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory(dir=options.out) as out:
            costs.append(cost(_optimize(model, LARGE, *gate, "--out", out)))
        print(f"large: {costs[-1]}, {costs[-1].peak_bytes / size:.2f} times the file's {size / 1e6:.0f} MB")
    most, fastest = max(one.peak_bytes for one in costs), min(one.wall_s for one in costs)
    _say("memory", most / size, 2.5, "times the file")
    _say("time", fastest, 20.0, "s, the fastest")


def small(options: argparse.Namespace) -> None:
    if options.network is None or options.data is None:
        raise SystemExit("small: name --network MODEL.onnx and --data FILE.npz of its input")
    network, data = options.network.resolve(), options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    ours, theirs = [], []
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory(dir=options.out) as out:
            ours.append(cost(_optimize(network, "fold,int8", "--calibration", str(data), "--out", out)))
            result = str(Path(out, "peer.onnx"))
            theirs.append(cost([PEER, str(network), str(data), result]))
        print(f"small: Lathe {ours[-1]}; quantize_static {theirs[-1]}", flush=True)
    for what in ("wall_s", "cpu_s"):
        ratios = [getattr(one, what) / getattr(other, what) for one, other in zip(ours, theirs, strict=True)]
        _say(what, median(ratios), 1.5, "times the peer's, the median of pairs")


def _say(what: str, found: float, floor: float, unit: str) -> None:
    print(f"{what}: {found:.2f} {unit}; floor {floor}, {'met' if found <= floor else 'missed'}", flush=True)


def _optimize(model: Path, passes: str, *more: str) -> list[str]:
    return ["-m", "onnx_lathe", str(model), "--passes", passes, "--quiet", *more]


def cost(arguments: Sequence[str]) -> Cost:
    """Of a fresh Python process with the arguments."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(PAUSE_S):
            peak[0] = max(peak[0], sum(map(_resident, _tree(process.pid))))

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(arguments)}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, peak[0])


def _tree(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
