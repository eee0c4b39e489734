"""Sections qnn and qnn-agreement of phone.py."""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import networks_judge as judge
import numpy as np
import onnx
from int8_large import SHAPES
from phone_networks import OWN, Network, networks
from sets import ROOT, datasets, scaled

from onnx_lathe.optimizer.build import lower
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.registry import find

RECIPES = {"float": "fold", "int8": "fold,int8"}
SHAPED = ("ResNet-18", "MobileNetV2")
IMAGES, CALIBRATION = 200, 500
EFFICIENT = "efficientnet-lite0"


def qnn(options: argparse.Namespace) -> None:
    """Every network in float and in INT8: whether one program of the chip computes all of it."""
    print(
        "| network | form | programs | layers in INT8 | in float16 | files | of the model | off by | compiled in | or: refused |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for network in [*_shaped(options), *networks(options)]:
        for form, passes in RECIPES.items():
            print(f"| {network.name} | {form} | {_cells(network, form, passes, options)} |", flush=True)


def _shaped(options: argparse.Namespace) -> Iterator[Network]:
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.out / "noise224.npz"
    for name in SHAPED:
        if options.only and name not in options.only:
            continue
        model = options.out / f"{name}.onnx"
        if not model.exists():
            SHAPES[name](model)
        if not data.exists():
            noise = np.random.default_rng(0).standard_normal((8, 3, 224, 224)).astype(np.float32)
            np.savez(data, **{"calibration/image": noise[:6], "evaluation/image": noise[6:]})
        yield Network(name, model, data, "own")


def _cells(network: Network, form: str, passes: str, options: argparse.Namespace) -> str:
    """Measured, or as an earlier run left it."""
    path = options.out / network.name / f"qnn-{form}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(_built(network, form, passes, options)))
    row = json.loads(path.read_text())
    if row["code"]:
        return f"| | | | | | | {row['message']}"
    found = row["target"]["details"]
    off = found.get("verified", {}).get("relative_error")
    cells = [
        str(found["programs"]),
        str(found["int8_layers"]),
        str(found["float_layers"]),
        f"{row['target']['size_bytes'] / 1e6:.2f} MB",
        f"{row['target']['size_bytes'] / network.model.stat().st_size:.3f}",
        "not compared" if off is None else f"{off:.1e}",
        f"{found['compile_s']:.1f} s",
    ]
    return " | ".join([*cells, ""])


def _built(network: Network, form: str, passes: str, options: argparse.Namespace) -> Mapping[str, object]:
    arguments = [str(network.model), "--passes", passes, "--target", "qnn", "--threads", "1", "--no-latency"]
    arguments += ["--calibration", f"{network.data}:calibration", "--eval", _few(network.data)]
    ran = judge.run(arguments, options.out / network.name / f"qnn-{form}")
    targets = ran.report.get("targets", [])
    if ran.failure:
        raise SystemExit(f"{network.name}: {passes}: {ran.failure}")
    return {
        "code": ran.code,
        "message": ran.message,
        "target": targets[0] if targets and not ran.code else None,
    }


def _few(data: Path) -> str:
    """Two samples: the simulator takes seconds for one of a large network."""
    path = data.with_name(f"{data.stem}-two.npz")
    if not path.exists():
        with np.load(data) as arrays:
            kept = {name: arrays[name][:2] for name in arrays if name.startswith("evaluation/")}
        np.savez(path, **kept)
    return f"{path}:evaluation"


def agreement(options: argparse.Namespace) -> None:
    """Networks with real weights on 200 images: the simulator's class beside that of ONNX Runtime on the same lowered
    file, without its optimizers.
    """
    print("| network | same class | top-1 simulated | in ONNX Runtime | off by | an image |")
    print("|---|---|---|---|---|---|")
    for name, model, data in _labelled(options):
        if options.only and name not in options.only:
            continue
        folder = options.out / f"agreement-{name}"
        arguments = [str(model), "--passes", "fold,int8", "--target", "qnn", "--threads", "1", "--no-latency"]
        arguments += ["--calibration", f"{data}:calibration", "--eval", _few(data)]
        ran = judge.run(arguments, folder)
        if ran.code:
            raise SystemExit(f"{name}: exit {ran.code}: {ran.message}")
        print(f"| {name} | {_agreed(folder / 'steps' / '02-int8.onnx', data, folder)} |", flush=True)


def _agreed(canonical: Path, data: Path, folder: Path) -> str:
    with np.load(data) as arrays:
        (key,) = (name for name in arrays if name.startswith("evaluation/") and not name.endswith("/labels"))
        images, labels = arrays[key], arrays["evaluation/labels"]
    target, name = find("qnn")(), key.partition("/")[2]
    shape = "x".join(map(str, (1, *images.shape[1:])))
    config = dataclasses.replace(target.Config(), shapes={name: shape})
    model, _ = lower(target, config, onnx.load(canonical), Context())
    lowered, out = folder / "lowered.onnx", folder / "agreement"
    out.mkdir(exist_ok=True)
    onnx.save(model, lowered)
    session = target.open(target.build(lowered, out, config, lambda text: None), config)
    assert session is not None
    started = time.perf_counter()
    got = session.run(None, {name: images})[0].reshape(len(images), -1)
    seconds = time.perf_counter() - started
    session.close()
    exact = ort.session(model, optimized=False)
    rows = [next(iter(ort.run(exact, {name: images[row : row + 1]}).values())) for row in range(len(images))]
    wanted = np.concatenate(rows).reshape(len(images), -1)
    same = np.mean(got.argmax(1) == wanted.argmax(1))
    tops = (np.mean(scores.argmax(1) == labels) for scores in (got, wanted))
    off = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    cells = [
        f"{same:.1%}",
        *(f"{top:.1%}" for top in tops),
        f"{off:.1e}",
        f"{1e3 * seconds / len(images):.0f} ms",
    ]
    return " | ".join(cells)


def _labelled(options: argparse.Namespace) -> Iterator[tuple[str, Path, Path]]:
    """(name, model, data) of the repository's networks, and of EfficientNet-Lite0 if `--photos` names data for it."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, of in OWN.items():
        model, path = ROOT / "models" / name / "model.onnx", options.out / f"{name}-labelled.npz"
        if not path.exists():
            value = onnx.load(model).graph.input[0]
            sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
            parts = {}
            for part, split, count in (("calibration", "train", CALIBRATION), ("evaluation", "test", IMAGES)):
                images, labels = datasets.load(of, split, options.data_dir)
                planes = images[:count, None] if images.ndim == 3 else images[:count].transpose(0, 3, 1, 2)
                parts[f"{part}/{value.name}"] = scaled(planes, of).reshape(count, *sizes)
                parts[f"{part}/labels"] = labels[:count]
            np.savez(path, **parts)
        yield name, model, path
    if options.photos:
        wanted = argparse.Namespace(**{**vars(options), "only": [EFFICIENT]})
        yield from ((one.name, one.model, options.photos) for one in networks(wanted))
