"""ncnn's own converter beside ours: two ways from one model, and the same numbers in ncnn."""

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn.dialect import param_text, write_weights
from onnx_lathe.runtime.targets.ncnn.running import Opened, package
from tests.support.builders import build, random
from tests.support.ncnn import Sizes, converted, fixed_sizes, random_feeds

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5


def pnnx() -> Path:
    """The program inside the package: importing it would import torch, and its own function drops exit codes."""
    found = importlib.util.find_spec("pnnx")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package pnnx is not installed")
    return Path(found.submodule_search_locations[0]) / "pnnx"


def by_pnnx(
    model: onnx.ModelProto, sizes: Sizes, feeds: dict[str, np.ndarray], folder: Path
) -> list[np.ndarray]:
    """Outputs in order of what pnnx makes of the model, in ncnn."""
    source = folder / "given.onnx"
    onnx.save(model, source)
    shapes = ",".join(f"[{','.join(map(str, shape))}]" for shape in sizes.values())
    done = subprocess.run(
        [pnnx(), source, f"inputshape={shapes}", "fp16=0"], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ncnn = package()
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(folder / "given.ncnn.param")) == 0
    assert net.load_model(str(folder / "given.ncnn.bin")) == 0
    extractor, held = net.create_extractor(), []
    for place, value in enumerate(feeds.values()):
        held.append(np.ascontiguousarray(value[0]))
        extractor.input(f"in{place}", ncnn.Mat(held[-1]).clone())
    return [np.array(extractor.extract(f"out{place}")[1]) for place in range(len(model.graph.output))]


def by_us(
    model: onnx.ModelProto, sizes: Sizes, feeds: dict[str, np.ndarray], folder: Path
) -> list[np.ndarray]:
    found = converted(model, sizes)
    assert not found.refused
    param, weights = folder / "ours.param", folder / "ours.bin"
    param.write_text(param_text(found.layers), encoding="utf-8")
    with weights.open("wb") as file:
        write_weights(found.layers, file, False)
    return list(Opened(param, weights, found.inputs, found.outputs).sample(feeds).values())


def mixed() -> onnx.ModelProto:
    """Convolutions with a branch, a pooling, a resize, a concatenation, and a classifier; two outputs."""
    text = """(float[1, 3, 24, 24] x) => (float[1, 12, 24, 24] map, float[1, 5] scores) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        r = HardSwish (a)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        d = Conv <pads = [1, 1, 1, 1], group = 6> (p, w2)
        u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (d, , scales)
        map = Concat <axis = 1> (r, u)
        g = GlobalAveragePool (map)
        f = Flatten (g)
        l = Gemm <transB = 1> (f, w3, b3)
        scores = Softmax (l)
    }"""
    scales = np.array([1, 1, 2, 2], np.float32)
    return build(
        text,
        w1=random(6, 3, 3, 3),
        b1=random(6),
        w2=random(6, 1, 3, 3),
        w3=random(5, 12),
        b3=random(5),
        scales=scales,
    )


@pytest.mark.parametrize("name", ["lenet5-mnist", "resnet20-cifar10", "mixed"])
def test_both_converters_agree(name: str, tmp_path: Path) -> None:
    model = mixed() if name == "mixed" else onnx.load(ROOT / "models" / name / "model.onnx")
    sizes = fixed_sizes(model)
    feeds = random_feeds(model, sizes)
    wanted = list(ort.run(ort.session(model), feeds).values())
    theirs, ours = by_pnnx(model, sizes, feeds, tmp_path), by_us(model, sizes, feeds, tmp_path)
    for one, other, truth in zip(theirs, ours, wanted, strict=True):
        scale = float(np.abs(truth).max())
        assert np.abs(one.reshape(-1) - other.reshape(-1)).max() <= TOLERANCE * scale
        assert np.abs(other - truth).max() <= TOLERANCE * scale
