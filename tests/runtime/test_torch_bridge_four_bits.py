"""Quantization-aware training to four bits, with learned scales and without."""

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.support import quantized

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402


def four_bits(model: onnx.ModelProto, ranges: dict[str, float], levels: float) -> onnx.ModelProto:
    """Q/DQ pairs of INT4 around weights and inputs of every layer, one scale per tensor: its range over
    `levels`.
    """
    made = copy.deepcopy(model)
    stored, graph = quantized.stored(made), made.graph
    nodes, constants = [], {"zero": np.zeros((), ml_dtypes.int4)}
    for node in graph.node:
        for position in (0, 1) if node.op_type in ("Conv", "Gemm") else ():
            name = node.input[position]
            largest = np.abs(numpy_helper.to_array(stored[name])).max() if name in stored else ranges[name]
            constants[f"{name}_scale"] = np.array(largest / levels, np.float32)
            nodes.append(
                helper.make_node("QuantizeLinear", [name, f"{name}_scale", "zero"], [f"{name}_int4"])
            )
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int4", f"{name}_scale", "zero"], [f"{name}_restored"]
                )
            )
            node.input[position] = f"{name}_restored"
        nodes.append(node)
    nodes = copy.deepcopy(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(made, full_check=True)
    return made


def test_learned_scales_make_four_bits_work(lenet5: Path, mnist: Path) -> None:
    """From scales so wide that only three levels of fifteen are used, after one pass over 2,048 images."""
    model = onnx.load(lenet5)
    with np.load(mnist) as data:
        images = data["train/image"][:2048, None].astype(np.float32) / 255
        labels = data["train/labels"][:2048].astype(np.int64)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.no_grad():
        ranges = {
            name: float(value.abs().max()) for _, name, value in GraphModule(model).trace(image=x[:128])
        }
    start = four_bits(model, ranges | {"image": 1.0}, levels=1.5)
    losses, error = {}, torch.nn.CrossEntropyLoss()
    for learn in (False, True):
        module = GraphModule(start, learn_scales=learn)
        groups = [
            {"params": list(module.weights().values())},
            {"params": list(module.scales().values()), "lr": 0.02},
        ]
        optimizer = torch.optim.Adam(groups if learn else groups[:1], 1e-3)
        for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(64):
            optimizer.zero_grad()
            error(module(x[part]), y[part]).backward()
            optimizer.step()
        with torch.no_grad():
            losses[learn] = error(module(x[:1024]), y[:1024]).item()
    assert losses[True] < 0.3 < 0.5 * losses[False]
    for tensor in start.graph.initializer:
        if tensor.name in module.values():
            tensor.CopyFrom(numpy_helper.from_array(module.values()[tensor.name], tensor.name))
    scores = quantized.run(start, {"image": images[:1024]})[0]
    assert (scores.argmax(1) == labels[:1024]).mean() > 0.9
