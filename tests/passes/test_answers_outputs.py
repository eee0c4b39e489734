"""What a change inside a network does to its outputs, from values that are held before the change."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers import outputs as measuring
from onnx_lathe.passes.graph.answers.outputs import Outputs
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.model import import_model
from tests.support.answers import context
from tests.support.builders import build, random
from tests.support.codebooks import mixed

RESPONSES = {"a": "h", "b": "p", "c": "q", "d": "y"}


def branched() -> onnx.ModelProto:
    """Two paths, an output in the middle that is read further on, and one behind."""
    return build(
        """(float[N, 8] x) => (float[N, 12] m, float[N, 6] y) {
            h = MatMul (x, a)  r = Relu (h)  p = MatMul (r, b)  m = Tanh (p)  k = Add (m, p)  s = Relu (k)
            q = MatMul (s, c)  t = Relu (q)  j = Add (t, r)  y = MatMul (j, d) }""",
        a=random(8, 12),
        b=random(12, 12),
        c=random(12, 12),
        d=random(12, 6),
    )


def smaller(name: str) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        tensor = next(one for node in graph.nodes for one in node.inputs if one.name == name)
        write(tensor, (read(tensor) * np.float32(0.8)).astype(np.float32))

    return edit


@pytest.mark.parametrize("most_bytes", [1 << 20, 9000, 1])
def test_errors_are_those_of_the_whole_network(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    model = branched()
    monkeypatch.setattr(measuring, "MOST_BYTES", most_bytes)
    outputs = Outputs(import_model(model), context(model, x=mixed(80, 8)).need_calibrator(), 32)
    assert bool(outputs.points) == (most_bytes > 1)
    assert outputs.names == ["m", "y"]
    for name, response in RESPONSES.items():
        whole = outputs.error(smaller(name))
        assert whole > 1e-3
        assert outputs.error(smaller(name), [response]) == pytest.approx(whole, rel=1e-6)


def test_what_is_before_a_change_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = branched()
    outputs = Outputs(import_model(model), context(model, x=mixed(80, 8)).need_calibrator(), 32)
    ran: list[list[str]] = []
    run = outputs.held.run

    def noted(part: onnx.ModelProto, *rest: object) -> object:
        ran.append([str(node.output[0]) for node in part.graph.node])
        return run(part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(outputs.held, "run", noted)
    for name in "acd":
        outputs.error(smaller(name), [RESPONSES[name]])
    assert [len(nodes) for nodes in ran] == [10, 4, 1]
    assert ran[2] == ["y"]
