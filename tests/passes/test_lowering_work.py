"""What the steps of the lowering for ort share."""

from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build


def test_asking_for_a_rank_changes_nothing() -> None:
    graph = import_model(build("(float[2, 3] x) => (float[2, 3] y) { y = Relu (x)  unused = Neg (x) }"))
    assert Work(graph, PLACEMENT).rank(graph.outputs[0]) == 2
    assert [node.op for node in graph.nodes] == ["Relu", "Neg"]
