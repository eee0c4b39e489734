"""The time of a pass grows with the number of nodes, not with its square."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.quantization.equalization import Matrices, Rule, balance

SMALL, GROWTH = 800, 4
ALLOWED = 2.0 * GROWTH
"""Of a quadratic pass it would be 16 times; half of that is a slope of 1.5, which no noise of processor time reaches."""
CASES = {
    "fold": {},
    "prune": {"sparsity": 0.5, "min_size": 1},
    "codebook": {"bits": 1, "min_size": 1},
    "equalize": {},
    "int4": {"min_size": 1},
}


def chain(nodes: int) -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu in turn, two channels each."""
    rng = np.random.default_rng(0)
    made, tensors, top = [], [], "x"
    for block in range(nodes // 3):
        kinds = {"w": rng.standard_normal((2, 2, 1, 1)), "s": np.ones(2), "b": np.zeros(2), "m": np.zeros(2)}
        kinds["v"] = np.ones(2)
        tensors += [
            numpy_helper.from_array(one.astype(np.float32), f"{name}{block}") for name, one in kinds.items()
        ]
        made += [
            helper.make_node("Conv", [top, f"w{block}"], [f"c{block}"], f"conv{block}"),
            helper.make_node(
                "BatchNormalization",
                [f"c{block}", *(f"{name}{block}" for name in "sbmv")],
                [f"n{block}"],
                f"norm{block}",
            ),
            helper.make_node("Relu", [f"n{block}"], [f"r{block}"], f"relu{block}"),
        ]
        top = f"r{block}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 3, 3]) for name in ("x", top)]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def spent(name: str, nodes: int) -> float:
    """Processor seconds of the thread."""
    model, instance = chain(nodes), configure(find(name), CASES[name])
    started = time.thread_time()
    apply_pass(instance, model, Context())
    return time.thread_time() - started


@pytest.mark.parametrize("name", CASES)
def test_four_times_the_nodes_take_about_four_times_as_long(name: str) -> None:
    spent(name, 30)  # imports
    small = min(spent(name, SMALL) for _ in range(2))
    large = min(spent(name, GROWTH * SMALL) for _ in range(2))
    assert large < ALLOWED * small, f"{large / small:.1f} times as long"


def balanced(layers: int) -> float:
    """Processor seconds of the thread, of a chain of layers of two channels."""
    rng = np.random.default_rng(0)
    chain = [
        Matrices(rng.random((1, 2, 2)), np.array([[2 * n, 2 * n + 1]]), np.array([[2 * n - 2, 2 * n - 1]]))
        for n in range(1, layers)
    ]
    group, free = np.repeat(np.arange(layers), 2), np.ones(2 * layers, bool)
    started = time.thread_time()
    balance(chain, group, free, None, Rule(0.5, 1.0, 1e4, 2))
    return time.thread_time() - started


def test_eight_times_the_layers_are_balanced_in_about_eight_times_the_time() -> None:
    small = min(balanced(500) for _ in range(2))
    large = min(balanced(4000) for _ in range(2))
    assert large < 2.0 * 8 * small, f"{large / small:.1f} times as long"
