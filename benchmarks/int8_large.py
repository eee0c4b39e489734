"""INT8 at 224 x 224: speed of ordinary convolutions, memory of calibrating with 1000 images; and weights in
half precision and 4 bits.

    python benchmarks/int8_large.py [speed memory small] --peers PEERS/bin/python [--data-dir DIR] [--out DIR]

speed   ResNet-18, VGG-16 and MobileNetV2 with random weights: latency of the file that each tool makes, in turn with the float network's
memory  an EfficientNet-Lite0 and 1000 images stored as uint8: seconds and memory of int8 by each method, all 1000 images read
small   float16 and int4 on the networks of int8.py: size of the file, and how near the outputs stay

ONNX Runtime on the CPU, one thread. --peers as for int8.py.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from int8 import PROBE, by_lathe, by_peer, kilobytes, outputs, run_lathe
from int8_networks import Network, enlarged, networks
from onnx import helper, numpy_helper
from sets import ROOT, data_file, parser_of, run_sections
from vgg16 import make_model

from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.runtime.running import ort

PEERS = ("onnxruntime minmax, UINT8", "onnxruntime minmax, symmetric INT8", "nncf mixed", "modelopt entropy")
IMAGES = 1000
METHODS = ("minmax", "percentile", "entropy", "mse")


def main() -> None:
    sections = {"speed": speed, "memory": memory, "small": small}
    parser = parser_of(__doc__, sections, "int8")
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment")
    run_sections(parser, sections)


def speed(options: argparse.Namespace) -> None:
    print(
        "| latency against float's | "
        + " | ".join([*PEERS, "Lathe"])
        + " |\n|---|"
        + "---|" * (len(PEERS) + 1)
    )
    for name, make in SHAPES.items():
        network = _shaped(name, make, options.out)
        images = np.load(network.data)["calibration/image"][:1]
        folder = options.out / name
        folder.mkdir(exist_ok=True)
        cells = []
        for setting in [*PEERS, "Lathe"]:
            if setting != "Lathe" and not options.peers:
                cells.append("")
                continue
            made = (
                by_peer(options.peers, setting, network, folder)
                if setting != "Lathe"
                else by_lathe(setting, network, folder)
            )
            if "failed" in made:
                cells.append("failed")
                continue
            float_session, session = (ort.session(path, threads=1) for path in (network.model, made["file"]))
            slow, fast = ort.latency_pair(float_session, session, {"image": images}, budget_s=20.0, most=200)
            cells.append(f"{fast / slow:.2f}")
        print(f"| {name} ({slow:.0f} ms in float) | {' | '.join(cells)} |", flush=True)


def _shaped(name: str, make: Callable[[Path], None], out: Path) -> Network:
    model, data = out / f"{name}.onnx", out / "noise224.npz"
    out.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        make(model)
    if not data.exists():
        np.savez(
            data,
            **{
                "calibration/image": np.random.default_rng(0)
                .standard_normal((8, 3, 224, 224))
                .astype(np.float32)
            },
        )
    return Network(name, model, data, "image")


class _Shapes:
    """Builds a network of random weights (He et al. 2015) layer by layer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, x: str, read: int, written: int, size: int, stride: int = 1, group: int = 1, act: str = ""
    ) -> str:
        fan = read // group * size * size
        weight = self.constant(
            self.generator.standard_normal((written, read // group, size, size)) * np.sqrt(2 / fan)
        )
        bias = self.constant(self.generator.standard_normal(written) * 0.1)
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        y = self.add("Conv", [x, weight, bias], **shape, group=group)
        if act == "Relu6":
            return self.add("Clip", [y, self.constant(np.float32(0)), self.constant(np.float32(6))])
        return self.add(act, [y]) if act else y

    def save(self, x: str, channels: int, path: Path) -> None:
        x = self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        weight = self.constant(self.generator.standard_normal((1000, channels)) / np.sqrt(channels))
        self.nodes.append(
            helper.make_node(
                "Gemm", [x, weight, self.constant(np.zeros(1000))], ["logits"], "classifier", transB=1
            )
        )
        ends = [
            helper.make_tensor_value_info(name, 1, shape)
            for name, shape in (("image", ["N", 3, 224, 224]), ("logits", ["N", 1000]))
        ]
        graph = helper.make_graph(self.nodes, path.stem, ends[:1], ends[1:], self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def resnet18(path: Path) -> None:
    """He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; batch normalization
    folded.
    """
    net = _Shapes()
    x = net.add(
        "MaxPool",
        [net.conv("image", 3, 64, 7, 2, act="Relu")],
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
    )
    read = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and width != read else 1
            y = net.conv(net.conv(x, read, width, 3, stride, act="Relu"), width, width, 3)
            x = net.add(
                "Relu", [net.add("Add", [y, x if read == width else net.conv(x, read, width, 1, stride)])]
            )
            read = width
    net.save(x, read, path)


def mobilenet_v2(path: Path) -> None:
    """Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2; batch
    normalization folded.
    """
    net = _Shapes()
    x, read = net.conv("image", 3, 32, 3, 2, act="Relu6"), 32
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for factor, width, blocks, first in stages:
        for block in range(blocks):
            stride, inner = first if block == 0 else 1, read * factor
            y = net.conv(x, read, inner, 1, act="Relu6") if factor > 1 else x
            y = net.conv(net.conv(y, inner, inner, 3, stride, group=inner, act="Relu6"), inner, width, 1)
            x = net.add("Add", [x, y]) if stride == 1 and read == width else y
            read = width
    net.save(net.conv(x, read, 1280, 1, act="Relu6"), 1280, path)


SHAPES = {"ResNet-18": resnet18, "VGG-16": make_model, "MobileNetV2": mobilenet_v2}


def memory(options: argparse.Namespace) -> None:
    network = next(one for one in networks(options.out, options.data_dir) if one.name == "efficientnet-lite0")
    data = options.out / "efficientnet-lite0-1000.npz"
    if not data.exists():
        with np.load(data_file("cifar10", options.out, options.data_dir)) as arrays:
            np.savez(data, image=np.stack([enlarged(image) for image in arrays["train/image"][:IMAGES]]))
    images = np.load(data)["image"]
    session = ort.session(network.model)
    started = time.perf_counter()
    for start in range(0, IMAGES, 4):
        session.run(None, {"image": (images[start : start + 4].astype(np.float32) - 127) / 128})
    plain = time.perf_counter() - started
    print(
        f"| EfficientNet-Lite0, {IMAGES} images | seconds | allowed | peak memory beyond imports |\n|---|---|---|---|"
    )
    print(f"| running the float network, batches of 4 | {plain:.1f} | | |", flush=True)
    probe = [sys.executable, "-c", PROBE]
    before = subprocess.run(
        [*probe, "-c", "import onnx_lathe.optimizer.pipeline"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for method, correct in [*((method, "false") for method in METHODS), ("percentile", "true")]:
        command = [
            *probe,
            str(ROOT / "benchmarks" / "int8_calibrate.py"),
            str(network.model),
            str(data),
            method,
            str(IMAGES),
            correct,
        ]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        peak = (kilobytes(run.stderr) - kilobytes(before.stderr)) / 1024
        name = (
            "int8, with bias correction"
            if correct == "true"
            else f"int8(method={method}, bias_correction=false)"
        )
        print(f"| {name} | {float(run.stdout):.1f} | {2 * plain + 2:.1f} | {peak:.0f} MB |", flush=True)


def small(options: argparse.Namespace) -> None:
    print(
        "| network | pass | file of float's | points lost | agreement | SQNR | largest relative difference |\n|---|---|---|---|---|---|---|"
    )
    for network in networks(options.out, options.data_dir):
        with np.load(network.data) as arrays:
            images, labels = arrays[f"evaluation/{network.input}"], arrays.get("evaluation/labels")
        wanted = outputs(network.model, network.input, images)
        for passes in ("fold, float16", "fold, int4", "fold, int8(activations=false)"):
            out = options.out / network.name / passes.replace("fold, ", "").replace("(", "-").replace(")", "")
            if not (out / "model.onnx").exists():
                run_lathe(network, passes, out)
            found = outputs(out / "model.onnx", network.input, images)
            same = wanted.argmax(-1) == found.argmax(-1)
            lost = (
                ""
                if labels is None
                else f"{100 * (np.mean(wanted.argmax(-1) == labels) - np.mean(found.argmax(-1) == labels)):.2f}"
            )
            size = (out / "model.onnx").stat().st_size / network.model.stat().st_size
            largest = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            quality = (
                f"{100 * same.mean():.2f} % | {signal_to_noise_db(wanted, found):.1f} dB | {largest:.1e}"
            )
            print(f"| {network.name} | {passes} | {size:.2f} | {lost} | {quality} |", flush=True)


if __name__ == "__main__":
    main()
