"""What a hundred photographs without labels bring back of a compressed network, without training.

    python benchmarks/without_training.py [efficientnet resnet20] [--out DIR] [--data-dir DIR] [--only TEXT] [--peer PYTHON]

Each recipe by the command `optimize`, with and without compensation; the agreement with the float network is of
photographs that calibrated nothing. `--peer`: a Python that has onnxsim, whose methods of the same names are measured on
the same data in the same runtime.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

STEM = '"*stem*": {off}'
DENSE = '"*stem*": {off}, "*depthwise*": {off}'


@dataclass(frozen=True)
class Row:
    """`plain` and `better`: passes behind `fold`, without and with compensation. `floor`: of the agreement, or of top-1
    lost in points, as the network's rows are judged.
    """

    what: str
    plain: str
    better: str
    floor: str


def _layers(pattern: str, off: str) -> str:
    return "layers={" + pattern.format(off=off) + "}"


EFFICIENTNET = (
    Row(
        "50 % zeros, each layer its share",
        f"prune(sparsity=0.5, scope=global, {_layers(STEM, '0')})",
        f"prune(sparsity=0.5, scope=global, score=obs, {_layers(STEM, '0')}), refit",
        "agreement 82 %",
    ),
    Row(
        "30 % zeros, each layer its share",
        f"prune(sparsity=0.3, scope=global, {_layers(STEM, '0')})",
        f"prune(sparsity=0.3, scope=global, score=obs, {_layers(STEM, '0')}), refit",
        "agreement 95 %",
    ),
    Row(
        "50 % zeros in all 1x1 layers",
        f"prune(sparsity=0.5, {_layers(DENSE, '0')})",
        f"prune(sparsity=0.5, score=obs, {_layers(DENSE, '0')}), refit",
        "",
    ),
    Row(
        "the same by magnitude, refit alone",
        f"prune(sparsity=0.5, {_layers(DENSE, '0')})",
        f"prune(sparsity=0.5, {_layers(DENSE, '0')}), refit",
        "",
    ),
    Row(
        "the same by answers, without refit",
        f"prune(sparsity=0.5, {_layers(DENSE, '0')})",
        f"prune(sparsity=0.5, score=obs, {_layers(DENSE, '0')})",
        "",
    ),
    Row(
        "2:4 in 1x1 layers",
        f"prune_nm(n=2, m=4, {_layers(DENSE, '0')})",
        f"prune_nm(n=2, m=4, score=obs, {_layers(DENSE, '0')}), refit",
        "agreement 64 %",
    ),
    Row(
        "INT4, group 32",
        f"int4(group=32, {_layers(DENSE, 'false')})",
        f"int4(group=32, rounding=hessian, {_layers(DENSE, 'false')}), refit",
        "agreement 94 %, top-1 within 1.5 points",
    ),
    Row(
        "the same by nearest levels, refit alone",
        f"int4(group=32, {_layers(DENSE, 'false')})",
        f"int4(group=32, {_layers(DENSE, 'false')}), refit",
        "",
    ),
    Row(
        "20 % fewer MACs by channels",
        "prune_channels(macs=0.8)",
        "prune_channels(macs=0.8, importance=obs)",
        "agreement 82 %",
    ),
    Row(
        "10 % fewer MACs by channels",
        "prune_channels(macs=0.9)",
        "prune_channels(macs=0.9, importance=obs)",
        "agreement 91 %",
    ),
    Row(
        "16 shared values a layer",
        f"codebook(bits=4, {_layers(DENSE, '0')})",
        f"codebook(bits=4, rounding=hessian, sequential=true, {_layers(DENSE, '0')}), refit",
        "agreement 90 %",
    ),
    Row(
        "the same, each layer by itself before refit",
        f"codebook(bits=4, {_layers(DENSE, '0')})",
        f"codebook(bits=4, rounding=hessian, {_layers(DENSE, '0')}), refit",
        "",
    ),
    Row(
        "16 shared values for each of 8 groups of channels",
        f"codebook(bits=4, share=channel_group, groups=8, {_layers(DENSE, '0')})",
        f"codebook(bits=4, share=channel_group, groups=8, rounding=hessian, sequential=true, {_layers(DENSE, '0')}), refit",
        "agreement 93 %",
    ),
    Row("INT8, weights and activations", "int8", "int8(rounding=hessian)", "agreement 99 %"),
)
STEM8 = 'weight_bits=4, layer_weight_bits={"*stem*": 8}'
EFFICIENTNET += (
    Row("INT8, levels by layers", "int8", "int8(rounding=adaptive)", ""),
    Row("INT8, by blocks", "int8", "int8(rounding=blocks)", "agreement 99 %"),
    Row(
        "weights of 4 bits, INT8 activations, by layers",
        f"int8({STEM8})",
        f"int8({STEM8}, rounding=adaptive)",
        "",
    ),
    Row(
        "weights of 4 bits, INT8 activations, by blocks",
        f"int8({STEM8})",
        f"int8({STEM8}, rounding=blocks)",
        "agreement 95 %",
    ),
)
ENDS = '"node_Conv_306": 0, "node_linear": 0'
RESNET20 = tuple(
    Row(
        what,
        f"{name}({options}, layers={{{ENDS}}})",
        f"{name}({options}, score=obs, layers={{{ENDS}}}), refit",
        floor,
    )
    for what, name, options, floor in (
        ("50 % zeros", "prune", "sparsity=0.5, scope=global", "-0.2 points"),
        ("70 % zeros", "prune", "sparsity=0.7, scope=global", "-1.3 points"),
        ("2:4", "prune_nm", "n=2, m=4", "-0.4 points"),
    )
) + (
    Row(
        "half the MACs by channels",
        "prune_channels(macs=0.5)",
        "prune_channels(macs=0.5, importance=obs)",
        "",
    ),
)
RESNET20 += tuple(
    Row(f"half the MACs, {what}", "svd(macs=0.5, multiple=4)", better, floor)
    for what, better, floor in (
        ("svd", "svd(macs=0.5, multiple=4), refit", ""),
        ("tucker", "tucker(macs=0.5, multiple=4), refit", "1.0 points above svd"),
        ("cp", "tucker(macs=0.5, multiple=4, form=cp), refit", "1.0 points above svd"),
    )
)
PEER = (
    Row(
        "50 % zeros in every layer",
        "prune(sparsity=0.5)",
        "prune(sparsity=0.5, score=obs), refit",
        "ahead of sparsegpt(sparsity=0.5)",
    ),
    Row(
        "2:4 in every layer",
        "prune_nm(n=2, m=4)",
        "prune_nm(n=2, m=4, score=obs), refit",
        "ahead of sparsegpt(n=2, m=4)",
    ),
)
"""What onnxsim leaves no layer out of."""


def jpegs(archive: "np.lib.npyio.NpzFile", part: str, count: int | None = None) -> np.ndarray:
    """Decoded images u8 [n, H, W, 3]."""
    data, offsets = archive[f"{part}_jpeg"], archive[f"{part}_offsets"]
    stop = len(offsets) - 1 if count is None else count
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
            for i in range(stop)
        ]
    )


def photographs(model: Path, folder: Path, out: Path) -> None:
    """calibration.npz without labels, eval.npz with them, as EfficientNet-Lite wants its inputs."""
    archive = np.load(folder / "natural300_jpeg.npz")
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    for part in ("calibration", "eval"):
        pixels = (jpegs(archive, part).astype(np.float32) - 127) / 128
        labels = {"labels": archive["eval_labels"]} if part == "eval" else {}
        np.savez(out / f"{part}.npz", **{name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}, **labels)


def small_images(model: Path, folder: Path, out: Path) -> None:
    """The first 100 training images of CIFAR-10 without labels, and all test images, as ResNet-20 wants its inputs."""
    from sets import scaled

    archive = np.load(folder / "cifar10_jpeg.npz")
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    for part, stored, count in (("calibration", "train", 100), ("eval", "test", None)):
        pixels = jpegs(archive, stored, count).transpose(0, 3, 1, 2)
        labels = {"labels": archive["y_test"]} if part == "eval" else {}
        np.savez(out / f"{part}.npz", **{name: scaled(pixels, "cifar10")}, **labels)


def compiled(model: Path, passes: str, data: Path, out: Path) -> dict[str, float]:
    """Agreement, top-1 of the last step, seconds of all steps behind fold."""
    command = [
        *(sys.executable, "-m", "onnx_lathe", str(model), "--passes", f"fold, {passes}", "--force"),
        *("--calibration", str(data / "calibration.npz"), "--eval", str(data / "eval.npz")),
        *("--out", str(out), "--no-latency", "--quiet"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    report = json.loads((out / "report.json").read_text())
    quality = report["steps"][-1]["quality"]
    return {
        "agreement": quality["agreement"],
        "top1": quality["top1"],
        "original": report["baseline"]["top1"],
        "seconds": sum(step["seconds"] for step in report["steps"][1:]),
    }


def by_peer(python: str, model: Path, asked: str, data: Path, out: Path) -> dict[str, float]:
    """Agreement and top-1 of what onnxsim makes of the folded network, and the seconds that it took."""
    script = Path(__file__).with_name("without_training_peer.py")
    command = [python, str(script), str(model), str(data / "calibration.npz"), asked, str(out)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    archive = np.load(data / "eval.npz")
    (name,) = [one for one in archive.files if one != "labels"]
    wanted, found = (_classes(path, name, archive[name]) for path in (model, out))
    return {
        "agreement": float((found == wanted).mean()),
        "top1": float((found == archive["labels"]).mean()),
        "seconds": seconds,
    }


def _classes(model: Path, name: str, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model))
    parts = [
        session.run(None, {name: values[i : i + 25]})[0].argmax(axis=1) for i in range(0, len(values), 25)
    ]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["efficientnet", "resnet20"])
    parser.add_argument("--out", type=Path, default=Path("build/without-training"))
    parser.add_argument(
        "--networks",
        type=Path,
        default=Path("build/networks"),
        dest="packages",
        help="of networks_packages.py",
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--peer", help="a Python that has onnxsim 0.8")
    options = parser.parse_args()
    models = Path(__file__).parents[1] / "models"
    known = {
        "efficientnet": (options.packages / "efficientnet-lite0.onnx", photographs, EFFICIENTNET),
        "resnet20": (models / "resnet20-cifar10" / "model.onnx", small_images, RESNET20),
    }
    for name in options.networks:
        model, prepare, rows = known[name]
        place = options.out / name
        place.mkdir(parents=True, exist_ok=True)
        prepare(model, options.data_dir, place)
        measured = cache(partial(compiled, model, data=place))
        print(
            f"| {name} | without | | with compensation | | floor | seconds |\n|---|---|---|---|---|---|---|"
        )
        for row in (*rows, *(PEER if options.peer else ())):
            if options.only in row.what:
                _print(
                    row,
                    measured(row.plain, out=place / "plain"),
                    measured(row.better, out=place / "better"),
                )
                if options.peer and "sparsegpt" in row.floor:
                    asked = row.floor.partition("sparsegpt")[2]
                    folded = place / "plain" / "steps" / "01-fold.onnx"
                    peer = by_peer(options.peer, folded, asked, place, place / "peer.onnx")
                    print(
                        f"| onnxsim {asked} | | | {peer['agreement']:.1%} | {peer['top1']:.2%} | | {peer['seconds']:.0f} |",
                        flush=True,
                    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"largest peak of a command: {peak:,.0f} MB")


def _print(row: Row, plain: dict[str, float], better: dict[str, float]) -> None:
    print(
        f"| {row.what}: `{row.better}` | {plain['agreement']:.1%} | {plain['top1']:.2%} | {better['agreement']:.1%} | "
        f"{better['top1']:.2%} (float {better['original']:.2%}) | {row.floor} | {better['seconds']:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
