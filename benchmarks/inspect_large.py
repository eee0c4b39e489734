"""Time and memory of `optimize inspect` on a model of VGG-16's size: 138 million random weights, 553 MB.

    python benchmarks/inspect_large.py

With the weights in another file, which is not read; with that file removed; with --weights, which reads it and counts
zeros and different values; and in one file. Each runs five times in a fresh process: the fastest, its processor time,
and its highest resident memory. Floor for weights in another file: 3 s.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
ROOT = Path(__file__).resolve().parents[1]
MAKE = """
import sys, onnx
from pathlib import Path
from vgg16 import make_model
one, apart = map(Path, sys.argv[1:])
make_model(one)
onnx.save_model(onnx.load(one), apart, save_as_external_data=True, location="weights", size_threshold=1024)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        one, apart = Path(scratch, "vgg16.onnx"), Path(scratch, "apart", "vgg16.onnx")
        apart.parent.mkdir()
        subprocess.run([sys.executable, "-c", MAKE, one, apart], cwd=ROOT / "benchmarks", check=True)
        print("| what | time | processor time | peak memory |\n|---|---|---|---|")
        row("weights in another file", apart)
        row("weights in another file, `--weights`", apart, "--weights")
        row("weights in the same file", one)
        apart.with_name("weights").unlink()
        row("weights in another file, which is removed", apart)


def row(what: str, model: Path, *options: str) -> None:
    seconds, cpu, peak = min(inspect(model, *options) for _ in range(RUNS))
    print(f"| {what} | {seconds:.1f} s | {cpu:.1f} s | {peak / 1e6:,.0f} MB |", flush=True)


def inspect(model: Path, *options: str) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and the highest resident memory in bytes of a fresh process."""
    command = [sys.executable, "-m", "onnx_lathe", "inspect", str(model), *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak


if __name__ == "__main__":
    main()
