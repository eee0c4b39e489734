"""Sections int8 and winograd of phone.py."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networks_judge as judge
import numpy as np
from int8_large import SHAPES, _Shapes
from phone_layers import LAYERS, made
from phone_networks import networks

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn.session import open_files

LEAST = 15
INT8_NETWORKS = ("ResNet-18", "VGG-16")
EFFICIENT = "efficientnet-lite0"


def resnet50(path: Path) -> None:
    """He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; batch normalization folded."""
    net = _Shapes()
    x = net.conv("image", 3, 64, 7, 2, act="Relu")
    x = net.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    read = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and width != 64 else 1
            y = net.conv(net.conv(x, read, width, 1, act="Relu"), width, width, 3, stride, act="Relu")
            y = net.conv(y, width, 4 * width, 1)
            x = net.add(
                "Relu", [net.add("Add", [y, x if block else net.conv(x, read, 4 * width, 1, stride)])]
            )
            read = 4 * width
    net.save(x, read, path)


NETWORKS = SHAPES | {"ResNet-50": resnet50}


def int8(options: argparse.Namespace) -> None:
    print(
        "| network | float in ncnn | INT8 in ncnn | of float | file of float's | float in ONNX Runtime | INT8 in ONNX Runtime |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, model, data in _int8_networks(options):
        folder = options.out / f"int8-{name}"
        files = {
            "ncnn float": _built(model, "fold", "ncnn(profile=x86)", data, folder / "float"),
            "ncnn int8": _built(
                model, "fold,int8,winograd(by=time)", "ncnn(profile=x86)", data, folder / "int8"
            ),
            "ort int8": _built(model, "fold,int8", "ort", data, folder / "ort"),
        }
        sessions = {"ort float": ort.plain_session(model, threads=1)}
        sessions |= {label: _opened(path) for label, path in files.items()}
        times = in_turn(sessions, one_sample(data), options.minutes)
        sizes = {
            label: sum(path.with_suffix(end).stat().st_size for end in (".param", ".bin"))
            for label, path in files.items()
            if path.suffix == ".param"
        }
        cells = [
            name,
            f"{times['ncnn float'][0]:.3g} ms",
            f"{times['ncnn int8'][0]:.3g} ms",
            f"{ratio(times, 'ncnn int8', 'ncnn float'):.2f}",
            f"{sizes['ncnn int8'] / sizes['ncnn float']:.3f}",
            f"{ratio(times, 'ort float', 'ncnn float'):.2f}",
            f"{ratio(times, 'ort int8', 'ncnn float'):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def winograd(options: argparse.Namespace) -> None:
    print(
        "| network | ncnn's own choice | again (noise) | winograd(by=time) | layers changed | ONNX Runtime, times of by=time's |"
    )
    print("|---|---|---|---|---|---|")
    for name, make in NETWORKS.items():
        if options.only and name not in options.only:
            continue
        model, data = shaped(name, make, options.out)
        folder = options.out / f"winograd-{name}"
        default = _built(model, "fold", "ncnn(profile=x86)", data, folder / "default")
        chosen = _built(model, "fold,winograd(by=time)", "ncnn(profile=x86)", data, folder / "chosen")
        sessions = {
            "default": _opened(default),
            "again": _opened(default),
            "chosen": _opened(chosen),
            "ort": ort.plain_session(model, threads=1),
        }
        times = in_turn(sessions, one_sample(data), options.minutes)
        changed = sum(" 31=" in line or " -23330=" in line for line in chosen.read_text().splitlines())
        cells = [
            name,
            f"{times['default'][0]:.1f} ms",
            f"{ratio(times, 'again', 'default'):.3f}",
            f"{ratio(times, 'chosen', 'default'):.3f}",
            str(changed),
            f"{ratio(times, 'ort', 'chosen'):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _int8_networks(options: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    found = [
        (name, *shaped(name, NETWORKS[name], options.out))
        for name in INT8_NETWORKS
        if not options.only or name in options.only
    ]
    wanted = argparse.Namespace(**{**vars(options), "only": [EFFICIENT]})
    if not options.only or EFFICIENT in options.only:
        found += [(one.name, one.model, one.data) for one in networks(wanted)]
    return found + [
        (name, *made(name, options.out)) for name in LAYERS if not options.only or name in options.only
    ]


def shaped(name: str, make: Any, out: Path) -> tuple[Path, Path]:
    """(model, data) at 224 x 224."""
    out.mkdir(parents=True, exist_ok=True)
    model, data = out / f"{name}.onnx", out / "noise224.npz"
    if not model.exists():
        make(model)
    if not data.exists():
        noise = np.random.default_rng(0).standard_normal((8, 3, 224, 224)).astype(np.float32)
        np.savez(data, **{"calibration/image": noise[:6], "evaluation/image": noise[6:]})
    return model, data


def _built(model: Path, passes: str, target: str, data: Path, out: Path) -> Path:
    """The first file that the target writes. Ends the benchmark if the command fails."""
    first = out / ("model.ort.onnx" if target == "ort" else "model.ncnn.param")
    if first.exists():
        return first
    arguments = [str(model), "--passes", passes, "--target", target, "--threads", "1"]
    arguments += ["--calibration", f"{data}:calibration", "--eval", f"{data}:evaluation"]
    ran = judge.run(arguments, out)
    if ran.code:
        raise SystemExit(f"{model.stem}: {passes}: exit {ran.code}: {ran.message}")
    return first


def _opened(path: Path) -> Any:
    return open_files(path) if path.suffix == ".param" else ort.plain_session(path, threads=1)


def one_sample(data: Path) -> dict[str, np.ndarray]:
    with np.load(data) as arrays:
        return {
            key.removeprefix("evaluation/"): arrays[key][:1]
            for key in arrays
            if key.startswith("evaluation/")
        }


def in_turn(
    sessions: Mapping[str, Any], feeds: Mapping[str, np.ndarray], minutes: float
) -> dict[str, tuple[float, np.ndarray]]:
    """Label -> (median milliseconds, all of them in the order of rounds); each round in another order."""
    names, shuffle = list(sessions), np.random.default_rng(0)
    rounds: list[list[float]] = []
    started = time.perf_counter()
    while len(rounds) <= LEAST or time.perf_counter() - started < 60 * minutes:
        times = [0.0] * len(names)
        for place in shuffle.permutation(len(names)):
            begin = time.perf_counter()
            sessions[names[place]].run(None, feeds)
            times[place] = 1e3 * (time.perf_counter() - begin)
        rounds.append(times)
    table = np.array(rounds[1:])
    return {name: (float(np.median(table[:, place])), table[:, place]) for place, name in enumerate(names)}


def ratio(times: Mapping[str, tuple[float, np.ndarray]], label: str, base: str) -> float:
    """The median of the rounds' ratios."""
    return float(np.median(times[label][1] / times[base][1]))
