"""Post-training INT8 on ResNet-20: top-1 lost on the 10,000 CIFAR-10 test images, calibrated on 512
training images, nothing retrained.

    python benchmarks/resnet20_int8.py [--data-dir DIR]

Floor: at most 0.5 points lost. The complete data set is downloaded unless a directory is named.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "models"))
import datasets

PREPROCESS = "mean=125.3,123.0,113.9 std=63.0,62.1,66.7"
CALIBRATION = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    train, _ = datasets.load("cifar10", "train", options.data_dir)
    test, labels = datasets.load("cifar10", "test", options.data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "cifar10.npz"
        np.savez(
            data, **{"calibration/image": train[:CALIBRATION], "eval/image": test, "eval/labels": labels}
        )
        arguments = [
            "--calibration",
            f"{data}:calibration",
            "--eval",
            f"{data}:eval",
            "--preprocess",
            PREPROCESS,
        ]
        command = [
            sys.executable,
            "-m",
            "onnx_lathe",
            "models/resnet20-cifar10/model.onnx",
            "--passes",
            "fold,int8",
            *arguments,
        ]
        run = subprocess.run(
            [*command, "--json", "--quiet", "--out", scratch], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
    record = json.loads(run.stdout)
    print("| model | top-1 | agreement | SQNR | file |")
    print("|---|---|---|---|---|")
    for name, metrics in [
        ("float32", record["baseline"]),
        *((step["name"], step["quality"]) for step in record["steps"]),
    ]:
        sqnr = "-" if metrics.get("sqnr") is None else f"{metrics['sqnr']:.1f} dB"
        print(
            f"| {name} | {100 * metrics['top1']:.2f} % | {100 * metrics['agreement']:.2f} % | {sqnr} | {metrics['size'] / 1e3:.0f} kB |"
        )
    lost = 100 * (record["baseline"]["top1"] - record["steps"][-1]["quality"]["top1"])
    print(f"\ntop-1 lost by INT8: {lost:.2f} points (floor: at most 0.50)")


if __name__ == "__main__":
    main()
