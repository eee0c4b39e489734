"""The networks of phone.py, each with data in parts `calibration` and `evaluation`."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networks_packages as packages
import numpy as np
import onnx
from bridge_coverage import DATA, random_weights
from networks_real import _data
from onnx import numpy_helper
from sets import ROOT, datasets, scaled

from onnx_lathe.runtime.running import ort

OWN = {"lenet300-mnist": "mnist", "lenet5-mnist": "mnist", "resnet20-cifar10": "cifar10"}
ALONE = ("captcha-crnn", "silero-vad", "silero-vad-half", "wake-mel")
"""Networks whose outputs have their batch on another axis than the first, or no batch: taken for one sample."""
SATURATED = 0.999
SAMPLES = {"calibration": 16, "evaluation": 32}


@dataclass(frozen=True)
class Network:
    name: str
    model: Path
    data: Path
    kind: str
    """Where it comes from: own, onnx or package."""


def networks(options: argparse.Namespace) -> Iterator[Network]:
    """Those of the repository, the `light_*` ones of the onnx package with random weights, and the packages'."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, data in OWN.items():
        if _wanted(name, options):
            yield Network(name, ROOT / "models" / name / "model.onnx", _images(name, data, options), "own")
    for path in sorted((DATA / "light").glob("*.onnx")):
        if _wanted(path.stem, options):
            yield _light(path, options.out)
    folder = options.networks or options.out / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    packages.PLACE[0] = folder
    for network in packages.REAL:
        if _wanted(network.name, options):
            place = options.out / network.name
            place.mkdir(exist_ok=True)
            path = packages.fetched(network, folder)
            if network.name in ALONE:
                path = _for_one(path, options.out)
            yield Network(network.name, path, _data(network.inputs, place), "package")


def _wanted(name: str, options: argparse.Namespace) -> bool:
    return not options.only or name in options.only


def _images(name: str, data: str, options: argparse.Namespace) -> Path:
    """Training images to calibrate with, and others of them to compare on: the test set is not needed here."""
    path: Path = options.out / f"{name}.npz"
    if not path.exists():
        key = onnx.load(ROOT / "models" / name / "model.onnx").graph.input[0].name
        images, _ = datasets.load(data, "train", options.data_dir)
        planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        parts, start = {}, 0
        for part, count in SAMPLES.items():
            parts[f"{part}/{key}"] = scaled(planes[start : start + count], data)
            start += count
        np.savez(path, **parts)  # type: ignore[arg-type]
    return path


def _positive_variances(model: onnx.ModelProto) -> None:
    """A variance below zero would make everything behind it NaN."""
    names = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + 0.1, tensor.name))


def _for_one(path: Path, out: Path) -> Path:
    """The network with a first dimension of 1 in all inputs, as the target ncnn asks for it."""
    target = out / path.name
    if not target.exists():
        model = onnx.load(path)
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        for value in model.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
        onnx.save(model, target)
    return target


def _light(path: Path, out: Path) -> Network:
    model, data = out / path.name, out / f"{path.stem}.npz"
    if not model.exists():
        partial = out / f".{path.name}"
        made = random_weights(path)
        _positive_variances(made)
        onnx.save(made, partial)
        os.replace(partial, model)
    if not data.exists():
        proto = onnx.load(model)
        stored = {tensor.name for tensor in proto.graph.initializer}
        (value,) = [value for value in proto.graph.input if value.name not in stored]
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        generator = np.random.default_rng(0)
        arrays = {
            f"{part}/{value.name}": generator.standard_normal((4, *shape[1:])).astype(np.float32)
            for part in SAMPLES
        }
        np.savez(data, **arrays)  # type: ignore[arg-type]
        _unsaturated(model, value.name, arrays[f"evaluation/{value.name}"])
    return Network(path.stem, model, data, "onnx")


def _unsaturated(path: Path, name: str, samples: np.ndarray) -> None:
    """Takes a last Softmax off a model whose random weights make it say 1 and 0, whatever is before it."""
    proto = onnx.load(path)
    last, (output,) = proto.graph.node[-1], proto.graph.output
    if last.op_type != "Softmax" or last.output[0] != output.name:
        return
    (said,) = ort.run(ort.session(proto), {name: samples[:1]}).values()
    if said.max() < SATURATED:
        return
    proto.graph.node.remove(last)
    output.name = last.input[0]
    partial = path.with_name(f".{path.name}")
    onnx.save(proto, partial)
    os.replace(partial, path)
