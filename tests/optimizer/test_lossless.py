"""Lossless passes and rounding: what rounding does is no defect, and what a pass does beyond it costs one
node or the pass, not the run.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import ContractError, Graph, Pass, PassReport, optimize, rewrite
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.rounding import rounding_error
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.initializers import read, write
from tests.support.builders import build, random, run


class Scales(Pass):
    """A lossless pass with a defect: it multiplies the weight of one layer of three by 1 + `by`."""

    name = "scales"
    lossless = True
    by = 0.01
    layers = ("MatMul_1",)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        for node in graph.nodes:
            if node.op == "MatMul" and node.name not in context.spared:
                weight = node.inputs[1]
                if node.name in self.layers:
                    write(weight, read(weight) * np.float32(1 + self.by))
                report.edit(node.name, "rewritten")
        return report


class ScalesAll(Scales):
    name = "scales_all"
    layers = ("MatMul_0", "MatMul_1", "MatMul_2")


class Reshapes(Pass):
    """A lossless pass whose output has another shape."""

    name = "reshapes"
    lossless = True

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        node = graph.nodes[-1]
        node.attrs["axis"] = 1
        report.edit(node.name, "another axis")
        return report


def three_layers() -> onnx.ModelProto:
    return build(
        "(float[4,8] x) => (float[4,8] y) { a = MatMul(x, w1) b = MatMul(a, w2) y = MatMul(b, w3) }",
        w1=random(8, 8),
        w2=random(8, 8),
        w3=random(8, 8),
    )


def cancelling() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Batch normalization behind a convolution from which it takes nearly all away: what is left is largely
    what rounding the weights has left.
    """
    weight = np.abs(random(16, 3, 3, 3)) + 1
    model = build(
        """(float[1,3,8,8] x) => (float[1,16,6,6] y) {
            c = Conv(x, w) y = BatchNormalization(c, scale, shift, mean, var)
        }""",
        w=weight * np.float32(1000),
        scale=np.abs(random(16)) + 1,
        shift=np.zeros(16, np.float32),
        mean=weight.sum(axis=(1, 2, 3)) * np.float32(1000),
        var=np.abs(random(16)) + 1,
    )
    return model, {"x": 1 + random(1, 3, 8, 8) * np.float32(1e-5)}


def test_what_rounding_moves_is_no_defect() -> None:
    model, feeds = cancelling()
    before = run(model, feeds)
    after, report = apply_pass(configure(find("fold"), {}), model, Context())
    assert report.edits
    moved = float(np.abs(run(after, feeds)["y"] - before["y"]).max())
    largest = float(np.abs(before["y"]).max())
    assert moved > find("fold").tolerance * largest, "the case shows nothing"
    assert moved < 4 * rounding_error(model, feeds, before)["y"]


def test_a_run_over_it_folds(tmp_path: Path) -> None:
    model, feeds = cancelling()
    np.savez(tmp_path / "data.npz", **feeds)
    record = optimize(model, "fold", eval=tmp_path / "data.npz", out=tmp_path / "out", latency=False)
    assert record.exit_code == 0
    assert record.steps[0].changed
    assert not [text for text in record.warnings if "left" in text]


def test_rounding_moves_a_plain_model_little() -> None:
    model = three_layers()
    feeds = {"x": random(4, 8)}
    expected = run(model, feeds)
    noise: Mapping[str, float] = rounding_error(model, feeds, expected)
    assert 0 < noise["y"] < 1e-5 * np.abs(expected["y"]).max()


def test_the_node_that_moved_an_output_is_spared(tmp_path: Path) -> None:
    model = three_layers()
    record = optimize(model, [Scales()], out=tmp_path / "out", latency=False)
    assert record.exit_code == 0
    step = record.steps[0]
    assert [edit["node"] for edit in step.edits] == ["MatMul_0", "MatMul_2"]
    (skip,) = step.skips
    assert skip["node"] == "MatMul_1"
    assert skip["reason"].startswith("left as it was: lossless pass 'scales' changed output 'y' by 0.0")
    assert any("MatMul_1" in text for text in record.warnings)
    feeds = {"x": random(4, 8)}
    written = onnx.load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(run(written, feeds)["y"], run(model, feeds)["y"], rtol=1e-5)


def test_a_pass_that_moves_it_everywhere_is_left_out(tmp_path: Path) -> None:
    model = three_layers()
    record = optimize(model, ["fold", ScalesAll()], out=tmp_path / "out", latency=False)
    assert record.exit_code == 0
    assert not record.steps[1].changed
    assert record.steps[1].skips[0]["reason"].startswith("left out: lossless pass 'scales_all'")
    assert any("the pass was left out" in text for text in record.warnings)
    feeds = {"x": random(4, 8)}
    written = onnx.load(tmp_path / "out" / "model.onnx")
    np.testing.assert_array_equal(run(written, feeds)["y"], run(model, feeds)["y"])


@pytest.mark.parametrize("instance", [Scales, ScalesAll])
def test_a_model_that_was_rewritten_as_it_was_read_is_held_to_what_it_was(
    instance: type[Scales], tmp_path: Path
) -> None:
    """Of opset 9: what is compared with is the model before the pass, converted, and not the pass's own."""
    model = three_layers()
    model.opset_import[0].version = 9
    model.ir_version = 4
    record = optimize(model, [instance()], out=tmp_path / "out", latency=False)
    assert record.exit_code == 0
    assert any("left" in text for text in record.warnings)
    feeds = {"x": random(4, 8)}
    written = onnx.load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(run(written, feeds)["y"], run(model, feeds)["y"], rtol=1e-5)


@pytest.mark.parametrize(
    "before, after, reason",
    [
        (np.zeros(100, np.uint8), np.full(100, 255, np.uint8), "100.00% of the values"),
        (np.arange(100), np.arange(100)[::-1], "100.00% of the values"),
        (np.array(["a", "b"]), np.array(["a", "c"]), "50.00% of the values"),
    ],
)
def test_outputs_that_are_no_floats_are_held_to_it_too(
    before: np.ndarray, after: np.ndarray, reason: str
) -> None:
    with pytest.raises(contract.OutputMovedError, match=reason):
        contract.check_outputs({"y": before}, {"y": after}, Scales)
    contract.check_outputs({"y": before}, {"y": before}, Scales)
    contract.check_outputs({"y": np.zeros(9, np.uint8)}, {"y": np.ones(9, np.uint8)}, Scales)  # rounding


def test_an_index_may_flip_where_rounding_flips_it() -> None:
    before, after = np.zeros(200, np.int64), np.arange(200) < 6
    with pytest.raises(contract.OutputMovedError, match=r"3\.00% of the values .* allowed is 1\.00%"):
        contract.check_outputs({"y": before}, {"y": after.astype(np.int64)}, Scales, lambda: {"y": 0.002})
    contract.check_outputs({"y": before}, {"y": after.astype(np.int64)}, Scales, lambda: {"y": 0.01})


def test_rounding_flips_the_index_of_equal_values() -> None:
    column = random(64, 1)
    equal, other = np.tile(column, (1, 2)), np.concatenate([column, 2 + column], 1)
    shares = []
    for weight in (equal, other):
        text = "(float[N, 64] x) => (int64[N, 1] y) { h = MatMul (x, w) y = ArgMax <axis = 1> (h) }"
        model = build(text, w=weight)
        feeds = {"x": np.abs(random(100, 64))}
        shares.append(rounding_error(model, feeds, run(model, feeds))["y"])
    assert shares[0] > 0.1
    assert shares[1] == 0


@pytest.mark.parametrize(("flips", "tolerated"), [(1, True), (2, False)])
def test_a_model_rewritten_as_it_is_read_is_held_to_the_same_share(flips: int, tolerated: bool) -> None:
    before = np.zeros(100, np.int64)
    after = before.copy()
    after[:flips] = 1
    assert (opening._unlike(before, after) == "") == tolerated
    try:
        contract.check_outputs({"y": before}, {"y": after}, Scales)
    except contract.OutputMovedError:
        assert not tolerated
    else:
        assert tolerated


def test_a_sequence_of_another_length_is_no_equal_one() -> None:
    one = np.ones(3, np.float32)
    for before, after in (({"s[0]": one}, {"s[0]": one, "s[1]": one}), ({"s[0]": one}, {})):
        with pytest.raises(contract.OutputMovedError, match="whether there is an output 's"):
            contract.check_outputs(before, after, Scales)


def test_in_memory_it_is_the_same() -> None:
    model, feeds = three_layers(), {"x": random(4, 8)}
    for instance in (Scales(), ScalesAll()):
        after = rewrite(model, [instance])
        np.testing.assert_allclose(run(after, feeds)["y"], run(model, feeds)["y"], rtol=1e-5)


def test_another_shape_is_a_defect() -> None:
    model = build("(float[2,3,4] x) => (float[N,M] y) { h = Relu(x) y = Flatten<axis=2>(h) }")
    with pytest.raises(ContractError, match="changed the shape of output 'y'"):
        rewrite(model, [Reshapes()])


def test_fold_and_equalize_spare_nodes() -> None:
    layer = build(
        "(float[1,3,8,8] x) => (float[1,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }",
        w=random(4, 3, 3, 3),
        s=random(4),
        b=random(4),
        m=random(4),
        v=np.abs(random(4)),
    )
    after, report = apply_pass(configure(find("fold"), {}), layer, Context(spared=frozenset(["Conv_0"])))
    assert after is layer
    assert not report.edits
    pair = build(
        "(float[2,8] x) => (float[2,4] y) { a = Gemm(x, w1) r = Relu(a) y = Gemm(r, w2) }",
        w1=random(8, 16) * np.geomspace(1, 1000, 16, dtype=np.float32),
        w2=random(16, 4),
    )
    after, report = apply_pass(configure(find("equalize"), {}), pair, Context())
    (edit,) = report.edits
    after, report = apply_pass(configure(find("equalize"), {}), pair, Context(spared=frozenset([edit.node])))
    assert not report.edits
