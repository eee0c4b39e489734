"""The sizes that a network is written for: the model's, the options', the data's."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.targets.core.sizes import from_data, parse, ranges, sizes_of
from onnx_lathe.runtime.targets.ncnn.ncnn import Ncnn
from tests.support.builders import build, random


def model(*shapes: list[int | str | None], names: str = "xyz") -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=False)
    ]
    return onnx.helper.make_model(onnx.helper.make_graph([], "sizes", values, []))


def test_open_sizes_are_looked_at_twice_and_told_apart() -> None:
    found = sizes_of(model(["N", 3, "H", "W"]), {})
    assert found.first == {"x": (1, 3, 224, 224)}
    assert found.second == {"x": (1, 3, 256, 288)}
    assert found.open


def test_sizes_of_minus_one_are_open() -> None:
    value = model([1, 3, 8, 8])
    for dim in value.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = -1
    assert sizes_of(value, {}).first == {"x": (1, 224, 224, 224)}


def test_a_batch_is_one_wherever_its_name_stands() -> None:
    found = sizes_of(model(["N", 4], [7, "N", 3]), {})
    assert found.first == {"x": (1, 4), "y": (7, 1, 3)}
    assert not found.open


def test_options_fix_sizes_or_leave_them_open() -> None:
    given = model([1, 3, "H", "W"])
    fixed = sizes_of(given, parse({"x": "1x3x32x48"}))
    assert fixed.first == fixed.second == {"x": (1, 3, 32, 48)}
    partly = sizes_of(given, parse({"x": "1x3x32x48:1x3x32x96"}))
    assert partly.open
    assert (partly.text("x"), partly.text("x", ":")) == ("1x3x32x48~1x3x32x96", "1x3x32x48:1x3x32x96")
    assert sizes_of(given, parse({"x": partly.text("x")})) == partly
    assert ranges({"x": "1x3x32x96:1x3x64x48", "y": "1x8~1x9", "z": "1x8"}) == {
        "x": ((1, 3, 32, 48), (1, 3, 64, 96))
    }
    assert partly.fixed().text("x") == "1x3x32x48"


def test_data_says_the_sizes_of_what_is_open() -> None:
    given = model([None, 3, "H", 40], [1, 5])
    found = from_data(given, {}, {"x": (8, 3, 20, 40), "y": (8, 5)})
    assert found == {"x": ((1, 3, 20, 40), (1, 3, 52, 40))}
    assert from_data(given, {"x": ((1, 3, 9, 40),) * 2}, {"x": (8, 3, 20, 40)}) == {}


@pytest.mark.parametrize(
    "table, message",
    [
        ({"x": "1x3xHxW"}, "takes one shape, or two"),
        ({"x": "1x3x8x8:1x3x8"}, "takes one shape, or two"),
        ({"x": "1x3x8"}, "has 4 dimensions, not 3"),
        ({"x": "1x4x8x8"}, "dimension 1 of input 'x' is fixed at 3"),
        ({"imag": "1x3x8x8"}, "has no input 'imag'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(table: dict[str, int | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sizes_of(model([1, 3, "H", "W"]), parse(table))


def fitted(
    text: str,
    shapes: dict[str, str],
    data: dict[str, tuple[int, ...]],
    per_call: bool = False,
    **stored: np.ndarray,
) -> tuple[dict[str, int | str], list[str]]:
    """(shapes, notes) that the target settles on, as a build asks for them."""
    target, network = Ncnn(), build(text, **stored)
    options = target.Config(shapes=shapes)
    taken, notes = target.fitted(network, options, data, per_call)
    assert not notes
    settled, notes = target.settled(network, options, taken)
    return settled.shapes, notes


FREE = "(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }"
HALF = "(float[N, 3, H, W] x) => (float[N, 3, A, B] y) { s = Shape (x) h = Gather (s, two) f = Cast <to = 1> (h) y = Mul (x, f) }"
COLUMNS = "(float[N, L] x) => (float[N, M] y) { y = MatMul (x, w) }"


def test_sizes_of_the_data_stay_open_where_ncnn_can() -> None:
    found = fitted(FREE, {}, {"x": (6, 3, 20, 40)})
    assert found == ({"x": "1x3x20x40~1x3x52x104"}, [])


def test_sizes_of_the_data_are_fixed_where_a_node_needs_them() -> None:
    shapes, (note,) = fitted(HALF, {}, {"x": (6, 3, 20, 40)}, two=np.array([2]))
    assert shapes == {"x": "1x3x20x40"}
    assert note.startswith("built for inputs of x 1x3x20x40, as the data has them: of node 'Mul_3' (Mul) ")
    assert note.endswith("depends on the size of the input")


def test_sizes_of_the_data_are_fixed_where_the_model_runs_at_no_others() -> None:
    shapes, (note,) = fitted(COLUMNS, {}, {"x": (4, 7)}, w=random(7, 3))
    assert shapes == {"x": "1x7"}
    assert (
        "built for inputs of x 1x7, as the data has them: the model does not run with inputs x 1x39" in note
    )


def test_a_batch_of_the_data_is_fixed_where_ncnn_takes_one_sample() -> None:
    """Each sample of the data is a call, whose first axis is no batch as far as the data says."""
    text = """(float[B, L] x, float rate) => (float[B, C, M] y) {
        u = Unsqueeze (x, one) c = Conv (u, w) y = Mul (c, rate) }"""
    shapes, (note,) = fitted(text, {}, {"x": (1, 96), "rate": ()}, True, one=np.array([1]), w=random(4, 1, 3))
    assert shapes == {"x": "1x96~1x160"}
    assert note.startswith(
        "built for inputs of x 1x96~1x160, as the data has them: of node 'Conv_1' (Conv) it "
    )


@pytest.mark.parametrize("shapes", [{}, {"x": "1x3x20x40:1x3x52x104"}])
def test_what_a_caller_leaves_open_is_not_fixed_in_silence(shapes: dict[str, str]) -> None:
    """Without data of its sizes; the build then refuses what it cannot compute."""
    data = {"x": (6, 3, 20, 40)} if shapes else {}
    assert fitted(HALF, shapes, data, two=np.array([2])) == (shapes, [])


def test_where_the_data_fixes_one_input_all_are_fixed() -> None:
    text = FREE.replace("x)", "x, float[N, 3, H, W] z)", 1).replace("Relu (x)", "Add (x, h)")
    text = text.replace("{ y", "{ s = Shape (z) i = Gather (s, two) f = Cast <to = 1> (i) h = Mul (z, f) y")
    given = {"z": "1x3x20x40:1x3x52x104"}
    shapes, (note,) = fitted(text, given, {"x": (6, 3, 20, 40)}, two=np.array([2]))
    assert shapes == {"x": "1x3x20x40", "z": "1x3x20x40"}
    assert note.startswith("built for inputs of x 1x3x20x40, as the data has them: ")
