"""What a pass does grows with the number of nodes, not with its square: lines of Python that run are counted, which is
the same on every machine. What NumPy or onnx do inside one line is not seen; benchmarks/scaling.py takes seconds.
"""

import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.quantization.equalization import Matrices, Rule, balance

SMALL, GROWTH = 400, 4
ALLOWED = 1.1
"""Over the growth of the nodes. One line that runs for all nodes at each is nearly half of what a pass of 1,600 does."""
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


def lines(run: Callable[[], object]) -> int:
    """How many lines of Python run; what is traced for another reason, as coverage, goes on afterwards."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def taken(name: str, nodes: int) -> int:
    model, instance = chain(nodes), configure(find(name), CASES[name])
    return lines(lambda: apply_pass(instance, model, Context()))


@pytest.mark.parametrize("name", CASES)
def test_four_times_the_nodes_take_about_four_times_as_long(name: str) -> None:
    taken(name, 30)  # imports
    small, large = (taken(name, nodes) for nodes in (SMALL, GROWTH * SMALL))
    assert large < ALLOWED * GROWTH * small, f"{large / small:.2f} times as many lines"


def test_what_is_quadratic_is_found() -> None:
    def pairs(nodes: int) -> int:
        return lines(lambda: [one for one in range(nodes) if any(one == other for other in range(nodes))])

    assert pairs(40) > 3 * pairs(20)


class Looked(np.ndarray):
    """Counts the elements of every array that is made of it."""

    elements = 0

    def __array_finalize__(self, made_of: object) -> None:
        Looked.elements += self.size


def balanced(layers: int) -> tuple[int, int]:
    """(lines, elements of arrays over all channels), of a chain of layers of two channels."""
    rng = np.random.default_rng(0)
    chain = [
        Matrices(rng.random((1, 2, 2)), np.array([[2 * n, 2 * n + 1]]), np.array([[2 * n - 2, 2 * n - 1]]))
        for n in range(1, layers)
    ]
    group, free = np.repeat(np.arange(layers), 2).view(Looked), np.ones(2 * layers, bool).view(Looked)
    Looked.elements = 0
    return lines(lambda: balance(chain, group, free, None, Rule(0.5, 1.0, 1e4, 2))), Looked.elements


def test_eight_times_the_layers_are_balanced_in_about_eight_times_the_time() -> None:
    for small, large in zip(balanced(100), balanced(800), strict=True):
        assert 0 < large < ALLOWED * 8 * small, f"{large / small:.1f} times as many"
