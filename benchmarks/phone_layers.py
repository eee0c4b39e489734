"""Small networks of one kind of layer, for section int8 of phone.py: what INT8 does to matrix products and to convolutions
of one dimension. Random weights (He et al. 2015).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SAMPLES = 6, 2
"""For calibration, and to compare on."""


class _Net:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def weight(self, *shape: int, read: int) -> str:
        values = self.generator.standard_normal(shape) * np.sqrt(2 / read)
        return self.constant(values.astype(np.float32))

    def constant(self, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, f"constant_{len(self.constants)}"))
        return str(self.constants[-1].name)

    def dense(self, x: str, read: int, written: int) -> str:
        """On the last axis, with a bias."""
        y = self.add("MatMul", x, self.weight(read, written, read=read))
        return self.add("Add", y, self.weight(written, read=100))

    def save(self, y: str, shape: list[int], path: Path) -> None:
        self.nodes.append(helper.make_node("Identity", [y], ["y"], "result"))
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape]) for name in ("x", "y")
        ]
        graph = helper.make_graph(self.nodes, path.stem, ends[:1], ends[1:], self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def mlp(width: int, depth: int, path: Path) -> None:
    """Gemm and ReLU, `depth` times; each weight is [width, width]."""
    net, x = _Net(), "x"
    for _ in range(depth):
        weight, bias = net.weight(width, width, read=width), net.weight(width, read=100)
        x = net.add("Relu", net.add("Gemm", x, weight, bias, transB=1))
    net.save(x, [width], path)


def transformer(width: int, tokens: int, path: Path) -> None:
    """One block of an encoder without normalization: attention of one head, and two products with four times the
    width between (Vaswani et al., "Attention Is All You Need", 2017, section 3).
    """
    net = _Net()
    query, key, value = (net.dense("x", width, width) for _ in range(3))
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1]))
    scores = net.add("Mul", scores, net.constant(np.float32(width**-0.5)))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), value)
    x = net.add("Add", "x", net.dense(mixed, width, width))
    hidden = net.add("Relu", net.dense(x, width, 4 * width))
    net.save(net.add("Add", x, net.dense(hidden, 4 * width, width)), [tokens, width], path)


def conv1d(channels: int, length: int, depth: int, path: Path) -> None:
    """Convolutions of three values and ReLU, `depth` times."""
    net, x = _Net(), "x"
    for _ in range(depth):
        weight = net.weight(channels, channels, 3, read=3 * channels)
        x = net.add("Relu", net.add("Conv", x, weight, net.weight(channels, read=100), pads=[1, 1]))
    net.save(x, [channels, length], path)


LAYERS: dict[str, tuple[list[int], Callable[[Path], None]]] = {
    "MLP, 64 x 64": ([64], partial(mlp, 64, 64)),
    "MLP, 256 x 256": ([256], partial(mlp, 256, 16)),
    "MLP, 1024 x 1024": ([1024], partial(mlp, 1024, 1)),
    "MLP, 2048 x 2048": ([2048], partial(mlp, 2048, 1)),
    "Transformer block, 256": ([64, 256], partial(transformer, 256, 64)),
    "Conv1D, 32 channels": ([32, 512], partial(conv1d, 32, 512, 8)),
    "Conv1D, 128 channels": ([128, 512], partial(conv1d, 128, 512, 4)),
    "Conv1D, 512 channels": ([512, 64], partial(conv1d, 512, 64, 2)),
}
"""Name -> (shape of a sample, what writes the model). Weights of all products of a network fit the cache up to 1024."""


def made(name: str, out: Path) -> tuple[Path, Path]:
    """(model, data)."""
    shape, write = LAYERS[name]
    stem = name.replace(" ", "").replace(",", "-")
    out.mkdir(parents=True, exist_ok=True)
    model, data = out / f"{stem}.onnx", out / f"{stem}.npz"
    if not model.exists():
        write(model)
    if not data.exists():
        noise = np.random.default_rng(0).standard_normal((sum(SAMPLES), *shape)).astype(np.float32)
        np.savez(data, **{"calibration/x": noise[: SAMPLES[0]], "evaluation/x": noise[SAMPLES[0] :]})
    return model, data
