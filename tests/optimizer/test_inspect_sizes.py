"""`inspect`: sizes that a user names, samples, and totals of what counts once."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.inspecting.rows import Row
from onnx_lathe.optimizer.report.inspection import summary
from tests.support.bodies import branches
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.quantized import lenet

TWO = (
    "(float[N, 4] x, float[N, 4] z, float[2, N, 4] s) => (float[N, 4] y) { a = Add (x, z) y = MatMul (a, w) }"
)


def by_op(model: onnx.ModelProto) -> dict[str, Row]:
    return {row.op: row for row in onnx_lathe.inspect(model, everything=True).layers}


def two() -> onnx.ModelProto:
    return build(TWO, w=random(4, 4))


def test_a_size_is_that_of_every_axis_of_its_name() -> None:
    rows, whole = onnx_lathe.inspect(two(), shapes={"x": (8, 4)}, everything=True)
    assert {row.node: row.output_shape for row in rows if row.op == "Input"} == {
        "x": (8, 4), "z": (8, 4), "s": (2, 8, 4)
    }  # fmt: skip
    assert (whole.batch, whole.macs) == (8, 8 * 16)
    assert "forward of 8 samples" in summary(whole)[0]
    assert onnx_lathe.inspect(two(), shapes={"s": (2, 8, 4)}).whole.batch == 8
    assert onnx_lathe.inspect(two(), batch=8).whole.macs == 8 * 16


def test_a_negative_size_is_an_open_one() -> None:
    """As Paddle2ONNX writes them."""
    model = build("(float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(4, 4))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    rows, whole = onnx_lathe.inspect(model)
    assert (rows[0].output_shape, whole.batch, whole.activations) == ((1, 4), 1, 8)
    assert onnx_lathe.inspect(model, shapes={"x": (8, 4)}).whole.batch == 8


def test_a_question_mark_is_no_name() -> None:
    model = build("(float[N, W, 4] x) => (float[N, W, 4] y) { y = MatMul (x, w) }", w=random(4, 4))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_param = "?"
    assert onnx_lathe.inspect(model, shapes={"x": (2, 3, 4)}).whole.macs == 2 * 3 * 16


def test_a_batch_that_the_model_fixes_is_said() -> None:
    fixed = build("(float[8, 4] x) => (float[8, 4] y) { y = MatMul (x, w) }", w=random(4, 4))
    assert onnx_lathe.inspect(fixed).whole.batch == 8
    assert onnx_lathe.inspect(fixed, shapes={"x": (8, 4)}).whole.batch == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shapes": {"x": (4, 4)}, "batch": 8}, "--batch 8: --shape gives the input 'x' 4 at a time"),
        ({"shapes": {"s": (2, 4, 4)}, "batch": 8}, "--batch 8: --shape gives the input 'x' 4 at a time"),
        ({"shapes": {"x": (4, 4), "z": (8, 4)}}, "'N' is 4 in the input 'x' and 8 in 'z'"),
        ({"shapes": {"x": (-1, 4)}}, "a size is a number from 1 to"),
        ({"shapes": {"x": (1.5, 4)}}, "a size is a number from 1 to"),
        ({"shapes": {"x": (2**63, 4)}}, "a size is a number from 1 to"),
        ({"shapes": {"x": "14"}}, "takes a list of sizes"),
        ({"shapes": {"x": 5}}, "takes a list of sizes"),
        ({"shapes": [("x", (1, 4))]}, "sizes by the inputs' names"),
        ({"batch": 2**40}, "batch takes a number from 1 on"),
        ({"batch": "2"}, "batch takes a number from 1 on"),
        ({"batch": True}, "batch takes a number from 1 on"),
        ({"optimizer": ["adam"]}, "optimizer takes a name"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        onnx_lathe.inspect(two(), **options)  # type: ignore[arg-type]


def test_sizes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(build("(float[N, W] x) => (float[N, W] y) { y = Relu (x) }"), tmp_path / "m.onnx")

    def said(*arguments: str) -> str:
        return refused(capsys, ["inspect", str(tmp_path / "m.onnx"), *arguments])

    assert "names the input 'x' twice" in said("--shape", "x=1x4", "--shape", "x=1x5")
    assert "names the input 'x' twice" in said("--shape", "x=1x4", "--shape", "1x5")
    assert "--shape takes NAME=" in said("--shape", f"x=1x{'9' * 5000}")
    assert "too many elements" in said("--shape", "x=2147483647x2147483647")


def test_the_page_is_not_written_over_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.html"
    onnx.save(two(), model)
    before = model.read_bytes()
    assert "is one of the models" in refused(capsys, ["inspect", str(model), "--html", str(model)])
    assert "give a name that ends so" in refused(capsys, ["inspect", str(model), "--html", "m.onnx"])
    assert model.read_bytes() == before


def test_times_are_of_the_sizes_of_the_rows(tmp_path: Path) -> None:
    model = build("(float[N, W, 4] x) => (float[N, W, 4] y) { y = MatMul (x, w) }", w=random(4, 4))
    data = {"x": random(3, 6, 4)}
    found = onnx_lathe.inspect(model, time=True, data=data, shapes={"x": (2, 6, 4)})
    assert (found.whole.macs, found.whole.batch) == (2 * 6 * 16, 2)
    assert any("x 2x6x4" in note for note in found.whole.notes)
    with pytest.raises(UsageError, match="input 'x' is 2x5x4, and what it is timed on 2x6x4"):
        onnx_lathe.inspect(model, time=True, data=data, shapes={"x": (2, 5, 4)})


def test_of_an_if_one_branch_has_energy() -> None:
    """The same one whose MACs count."""
    rows, whole = onnx_lathe.inspect(branches(), everything=True)
    energies = [row.energy for row in rows if not row.place.startswith("then")]
    assert whole.energy is not None
    assert whole.energy.total == pytest.approx(sum(one.total for one in energies if one is not None))
    assert whole.energy.arithmetic == pytest.approx(4.6 * whole.macs)


def test_of_an_if_one_branch_has_winograd() -> None:
    text = """(float[1, 4, 8, 8] x, bool c) => (float[1, 4, 8, 8] y) { y = If (c) <
        then_branch = yes () => (float[1, 4, 8, 8] a) { a = Conv <pads = [1, 1, 1, 1]> (x, w) },
        else_branch = no () => (float[1, 4, 8, 8] b) { b = Conv <pads = [1, 1, 1, 1]> (x, w) }
    > }"""
    whole = onnx_lathe.inspect(build(text, w=random(4, 4, 3, 3))).whole
    assert whole.macs == 2.25 * whole.winograd["winograd23"]


def pairs(kind: str, stored: np.ndarray) -> onnx.ModelProto:
    text = f"""(float[1, 4] x) => (float[1, 4] y) <float scale = {{0.1}}, {kind} zero = {{0}}> {{
        q = QuantizeLinear (x, scale, zero)  d = DequantizeLinear (q, scale, zero)
        v = DequantizeLinear (w, scale)  y = MatMul (d, v)
    }}"""
    return build(text, 21, w=stored)


def test_only_small_integers_cost_what_small_integers_cost() -> None:
    small = by_op(pairs("int8", np.ones((4, 4), np.int8)))["MatMul"]
    assert small.energy is not None
    assert small.energy.arithmetic == pytest.approx(0.3 * 16)
    wide = pairs("int16", np.ones((4, 4), np.int16))
    assert by_op(wide)["MatMul"].energy is None
    assert by_op(pairs("int16", np.ones((4, 4), np.int8)))["MatMul"].energy is None
    assert "no figure for products of int16" in onnx_lathe.inspect(wide).whole.uncounted["energies"]
    assert "int8" not in onnx_lathe.inspect(lenet()).whole.uncounted.get("energies", "")


def test_why_float64_has_no_energy() -> None:
    model = build("(double[1, 4] x) => (double[1, 4] y) { y = MatMul (x, w) }", w=np.ones((4, 4)))
    assert onnx_lathe.inspect(model).whole.uncounted["energies"] == (
        "energies of MatMul_0 (MatMul) are not counted: the table has no figure for products of double"
    )


def test_a_product_of_two_operands_that_are_both_repeated() -> None:
    model = build("(float[2, 1, 5, 7] x, float[1, 3, 7, 4] z) => (float[2, 3, 5, 4] y) { y = MatMul (x, z) }")
    row = by_op(model)["MatMul"]
    assert row.gemm is not None
    assert (row.gemm.groups, row.macs) == (6, 6 * 5 * 7 * 4)


def test_every_reader_of_a_weight_fetches_it() -> None:
    model = build(
        "(float[1, 4] x) => (float[1, 4] y) { h = MatMul (x, w) y = MatMul (h, w) }", w=random(4, 4)
    )
    one, two = onnx_lathe.inspect(model).layers
    assert (two.weight_bytes, two.parameters) == (0, 0)
    assert (one.intensity, one.energy) == (two.intensity, two.energy)
    fixed = onnx_lathe.inspect(model, batch=8)
    assert fixed.whole.energy is not None
    assert fixed.whole.energy.dram == pytest.approx(8 * onnx_lathe.inspect(model).whole.energy.dram)  # type: ignore[union-attr]


def test_what_training_leaves_out_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(
        "(float[N, W, 4] x) => (float[N, W, 4] y) { h = MatMul (x, w) y = Tanh (h) }", w=random(4, 4)
    )
    onnx.save(model, tmp_path / "m.onnx")
    whole = onnx_lathe.inspect(model, training=True).whole
    [line] = [line for line in summary(whole) if line.startswith("training")]
    assert ": more than " in line
    assert "more than 0 B gradients of activations" in line
    assert main(["inspect", str(tmp_path / "m.onnx"), "--training"]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all "))
    assert total.count("> ") == 5
    assert main(["inspect", *[str(tmp_path / "m.onnx")] * 2, "--training", "--shape", "1x3x4"]) == 0
    assert "training bytes" in capsys.readouterr().out


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two()
    model.graph.node[1].name = "red\x1b[31m"
    file = tmp_path / "bad\udcff.onnx"
    file.write_bytes(model.SerializeToString())
    onnx.save(model, tmp_path / "good.onnx")
    assert main(["inspect", str(file), "--html", str(tmp_path / "page.html")]) == 0
    assert "red\ufffd[31m" in capsys.readouterr().out
    assert "<h1>bad\ufffd.onnx</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    good = str(tmp_path / "good.onnx")
    assert "name is not UTF-8; rename it" in refused(capsys, ["diff", good, str(file)])
    assert main(["diff", good, good, "--quiet"]) == 0
    assert "\x1b" not in capsys.readouterr().out
