"""The registry of targets, the target `onnx`, and the shapes that dynamic inputs get."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.targets.core.registry import find, register, targets
from onnx_lathe.runtime.targets.tensorrt.shapes import (
    Profile,
    Sizes,
    from_data,
    parse_batch,
    parse_shapes,
    profiles,
    text,
)
from tests.support import builders, quantized

QUIET = lambda text: None  # noqa: E731


def test_targets_are_found_by_name() -> None:
    assert set(targets()) >= {"onnx", "tensorrt", "tensorrt-rtx"}
    assert list(targets()) == sorted(targets())
    assert all(find(name) is target and target.name == name for name, target in targets().items())


@pytest.mark.parametrize(
    "wrong, right", [("tensorrt_rtx", "tensorrt-rtx"), ("ONNX", "onnx"), ("tensort", "tensorrt")]
)
def test_a_wrong_name_gets_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=f"there is no target '{wrong}'; did you mean '{right}'"):
        find(wrong)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="two targets are named 'onnx'"):
        register(type("Other", (Target,), {"name": "onnx"}))


@pytest.mark.parametrize("name", sorted(targets()))
def test_every_option_is_frozen_and_documented(name: str) -> None:
    config = targets()[name].Config
    assert config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert field.metadata["help"], f"{name}({field.name}) has no help"
        assert isinstance(field.metadata["unit"], str)
    assert targets()[name].help


def test_onnx_writes_the_model_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    onnx.save(quantized.lenet(), source)
    out = tmp_path / "out"
    out.mkdir()
    target = find("onnx")()
    artifact = target.build(source, out, target.Config(), QUIET)
    assert artifact == Artifact((out / "model.onnx",), (out / "model.onnx").stat().st_size)
    assert onnx.load(out / "model.onnx") == onnx.load(source)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    assert target.available() is None
    assert target.lowering is None
    assert target.check(onnx.load(source), target.Config()) == []


def test_onnx_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    (tmp_path / "broken.onnx").write_bytes(b"hello world")
    with pytest.raises(LatheError, match=r"broken\.onnx"):
        find("onnx")().build(tmp_path / "broken.onnx", tmp_path, None, QUIET)
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def with_inputs(**shapes) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"], name) for name in shapes]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None) for name in shapes]
    return helper.make_model(helper.make_graph(nodes, "inputs", values, outputs))


BATCH = parse_batch("1:4:32")


def test_batch_and_equal_names_get_the_batch_sizes() -> None:
    model = with_inputs(a=["n", 3, 8], b=[None, 5], c=[2, "n"], fixed=[1, 2])
    assert profiles(model, BATCH, {}) == [
        {
            "a": Profile((1, 3, 8), (4, 3, 8), (32, 3, 8)),
            "b": Profile((1, 5), (4, 5), (32, 5)),
            "c": Profile((2, 1), (2, 4), (2, 32)),
        }
    ]


def test_an_initializer_is_no_input() -> None:
    model = with_inputs(a=["n", 3])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "a"))
    assert profiles(model, BATCH, {}) == []


def test_sizes_that_the_model_leaves_open_come_from_the_data() -> None:
    model = with_inputs(image=["n", 3, "h", None], ids=["n", "length"], fixed=[1, 2], rows=["n", 4], any=None)
    samples = {"image": (8, 3, 48, 320), "ids": (8, 17), "fixed": (1, 2), "rows": (8, 4), "any": (8, 5)}
    found = from_data(model, (), samples)
    assert found == {"image": "Nx3x48x320", "ids": "Nx17", "any": "Nx5"}
    (taken,) = profiles(model, BATCH, parse_shapes(found))
    assert {name: text(profile) for name, profile in taken.items()} == {
        "image": "1x3x48x320:4x3x48x320:32x3x48x320",
        "ids": "1x17:4x17:32x17",
        "rows": "1x4:4x4:32x4",
        "any": "1x5:4x5:32x5",
    }
    assert set(from_data(model, ("image",), samples)) == {"ids", "any"}
    assert from_data(model, (), {}) == {}
    assert from_data(model, (), {"image": (8, 3)}) == {}


def test_a_target_says_which_sizes_it_took_from_the_data() -> None:
    target = find("tensorrt-rtx")()
    config = target.Config(batch="1:4:32")
    model = with_inputs(image=["n", 3, "h", "w"])
    fitted, notes = target.fitted(model, config, {"image": (8, 3, 48, 320)})
    assert fitted.shapes == {"image": "Nx3x48x320"}
    assert notes == [
        "input 'image' has sizes that are not fixed: built for Nx3x48x320 (N: option batch), as the data has them; "
        "shapes={image: MIN:OPT:MAX} gives others"
    ]
    assert find("onnx")().fitted(model, None, {"image": (8, 3, 48, 320)}) == (None, [])


def test_a_batch_that_is_asked_for_counts_where_each_sample_of_the_data_is_a_call() -> None:
    target = find("tensorrt-rtx")()
    model = with_inputs(x=["batch", "length"], state=[2, "batch", 4], table=["rows", 3])
    samples = {"x": (1, 576), "state": (2, 1, 4), "table": (7, 3)}
    fitted, _ = target.fitted(model, target.Config(batch="1:2:8"), samples, True)
    assert fitted.shapes == {"x": "Nx576", "table": "7x3"}
    (taken,) = profiles(model, parse_batch("1:2:8"), parse_shapes(fitted.shapes))
    assert text(taken["state"]) == "2x1x4:2x2x4:2x8x4"
    unasked, _ = target.fitted(model, target.Config(), samples, True)
    assert unasked.shapes == {"x": "1x576", "state": "2x1x4", "table": "7x3"}


def test_a_batch_that_calls_leave_no_place_for_is_refused() -> None:
    target = find("tensorrt-rtx")()
    model, samples = with_inputs(x=["frames", 80]), {"x": (50, 80)}
    with pytest.raises(
        UsageError, match="each sample of the data is one call, such as 'x' 50x80, of which no"
    ):
        target.fitted(model, target.Config(batch=4), samples, True)
    given = target.Config(batch=4, shapes={"x": "Nx80"})
    assert target.fitted(model, given, samples, True)[0].shapes == {"x": "Nx80"}


@pytest.mark.parametrize("value, expected", [("1:8:32", (1, 8, 32)), (16, (16, 16, 16)), ("2", (2, 2, 2))])
def test_batch_is_three_sizes_or_one(value, expected) -> None:
    assert parse_batch(value) == [Profile(*((size,) for size in expected))]


def test_shapes_are_three_or_one() -> None:
    assert parse_shapes({"x": "1x3:2x3:4x3", "y": "2x2", "z": 5, "n": "Nx2"}) == {
        "x": [Sizes((1, 3), (2, 3), (4, 3))],
        "y": [Sizes((2, 2), (2, 2), (2, 2))],
        "z": [Sizes((5,), (5,), (5,))],
        "n": [Sizes((None, 2), (None, 2), (None, 2))],
    }
    assert profiles(with_inputs(x=["n", "m"]), BATCH, parse_shapes({"x": "1x3:2x3:4x3"})) == [
        {"x": Profile((1, 3), (2, 3), (4, 3))}
    ]
    assert profiles(with_inputs(x=None), BATCH, parse_shapes({"x": "4x4"})) == [
        {"x": Profile((4, 4), (4, 4), (4, 4))}
    ]


def test_each_profile_has_its_own_batch_and_shapes() -> None:
    model = with_inputs(image=["n", 3, "h"], ids=["n", "l"])
    shapes = {"image": "Nx3x8|Nx3x4:Nx3x6:Nx3x9", "ids": "Nx5"}
    small, large = profiles(model, parse_batch("1|2:4:8"), parse_shapes(shapes))
    assert {name: text(one) for name, one in small.items()} == {"image": "1x3x8", "ids": "1x5"}
    assert {name: text(one) for name, one in large.items()} == {
        "image": "2x3x4:4x3x6:8x3x9",
        "ids": "2x5:4x5:8x5",
    }
    assert profiles(with_inputs(a=["n", 3]), parse_batch("4|4|8"), {}) == [
        {"a": Profile((size, 3), (size, 3), (size, 3))} for size in (4, 8)
    ]


def test_numbers_of_profiles_that_do_not_agree_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"option shapes of 'x' is for 3 profiles, option batch for 2: give one, or 3"
    ):
        profiles(with_inputs(x=["n", "m"]), parse_batch("1|2"), parse_shapes({"x": "Nx3|Nx4|Nx5"}))


def runnable(text: str, **constants) -> onnx.ModelProto:
    return builders.build(text, 17, **constants)


def test_without_data_a_usual_size_is_taken_on_which_the_model_runs() -> None:
    target = find("tensorrt-rtx")()
    picture = runnable("(float[n, 3, h, w] x) => (float[n, 3, a, b] y) { y = Relu (x) }")
    fitted, notes = target.fitted(picture, target.Config(), {})
    assert fitted.shapes == {"x": "Nx3x224x224"}
    assert notes == [
        "input 'x' has sizes that are not fixed: built for Nx3x224x224 (N: option batch), a size on which it runs, "
        "since there is no data to say it; data or shapes={x: MIN:OPT:MAX} gives others"
    ]
    wide = runnable("(float[n, l] x) => (float[n, 2] y) { y = MatMul (x, w) }", w=builders.random(320, 2))
    assert target.fitted(wide, target.Config(), {})[0].shapes == {"x": "Nx320"}
    odd = runnable("(float[n, l] x) => (float[n, 2] y) { y = MatMul (x, w) }", w=builders.random(97, 2))
    assert target.fitted(odd, target.Config(), {}) == (target.Config(), [])
    given = target.Config(shapes={"x": "1x97"})
    assert target.fitted(odd, given, {}) == (given, [])


def test_sizes_that_are_tried_in_vain_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    odd = runnable("(float[n, l] x) => (float[n, 2] y) { y = MatMul (x, w) }", w=builders.random(97, 2))
    assert find("tensorrt-rtx")().fitted(odd, find("tensorrt-rtx").Config(), {})[1] == []
    assert capfd.readouterr().err == ""


def test_what_is_given_of_one_input_counts_for_the_usual_size_of_another() -> None:
    target = find("tensorrt-rtx")()
    both = runnable("(float[n, l] x, float[n, m] y) => (float[n, k] z) { z = Add (x, y) }")
    fitted, _ = target.fitted(both, target.Config(shapes={"y": "Nx64"}), {})
    assert fitted.shapes == {"x": "Nx64", "y": "Nx64"}


@pytest.mark.parametrize(
    "value", ["", "0", "1:2", "8:4:2", "1:2:3:4", "a", "1x2", "-1:1:2", "1:8:", "N", "1|", "1||2", "1|8:4:2"]
)
def test_a_wrong_batch_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^option batch "):
        parse_batch(value)


@pytest.mark.parametrize(
    "value",
    [
        "1x",
        "1x0",
        "1x3:2x3",
        "1x3:2x3:4",
        "4x3:2x3:1x3",
        "1x3:2x2:4x3",
        "1x3|",
        "Nx3:Nx3:4x3",
        "nx3",
        "1x3|2x0",
    ],
)
def test_wrong_shapes_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^option shapes, 'x': "):
        parse_shapes({"x": value})


@pytest.mark.parametrize(
    "inputs, shapes, message",
    [
        (
            {"image": ["n", 3, "h", 8]},
            {},
            r"input 'image': dimension 2 \('h'\) is not fixed; give data.*such as Nx3x224x8",
        ),
        ({"image": ["n", None]}, {}, r"input 'image': dimension 1 is not fixed"),
        ({"image": None}, {}, r"input 'image' has no shape"),
        ({"image": ["n", 3]}, {"imge": "1x3"}, r"no input 'imge'; did you mean 'image'"),
        ({"image": ["n", 3]}, {"q": "1x3"}, r"no input 'q'; it has image"),
        ({"image": ["n", 3]}, {"image": "1x4"}, r"dimension 1 of input 'image' is fixed at 3"),
        ({"image": ["n", 3]}, {"image": "1x3x3"}, r"input 'image' has 2 dimensions, not 3"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_refused(inputs, shapes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles(with_inputs(**inputs), BATCH, parse_shapes(shapes))


def test_each_profile_is_fitted_to_the_model() -> None:
    """The batch of the second profile is not the size that the model has."""
    config = find("tensorrt-rtx").Config(batch="4|8", shapes={"x": "Nx3"})
    with pytest.raises(UsageError, match=r"dimension 0 of input 'x' is fixed at 4"):
        find("tensorrt-rtx")().accepts(with_inputs(x=[4, 3], y=["n", 3]), config)


SWAPPED = "(float[N, 4, L] a, float[N, L, 4] b) => (float[N, 4, 4] y) { y = MatMul (a, b) }"


@pytest.mark.parametrize(
    ("given", "taken"),
    [("Nx4x8", "Nx8x4"), ("Nx4x8:Nx4x9:Nx4x12|Nx4x16", "Nx8x4:Nx9x4:Nx12x4|Nx16x4"), ("2x4x8", "Nx8x4")],
)
@pytest.mark.parametrize("data", [{}, {"a": (2, 4, 8), "b": (2, 8, 4)}], ids=["no data", "data"])
def test_dimensions_of_one_name_get_the_sizes_that_are_given_of_one(data, given: str, taken: str) -> None:
    config = find("tensorrt-rtx").Config(shapes={"a": given})
    fitted, _ = find("tensorrt-rtx")().fitted(runnable(SWAPPED), config, data)
    assert fitted.shapes == {"a": given, "b": taken}


@pytest.mark.parametrize(
    ("inputs", "shapes", "taken"),
    [
        ({"x": [1, 3, 8, 8]}, {}, False),
        ({"x": ["n", 3]}, {"x": "2x3"}, False),
        ({"x": [1, "length"]}, {}, False),
        ({"x": ["n", 3]}, {"x": "Nx3"}, True),
        ({"x": ["n", 3]}, {"x": "8x3"}, True),
        ({"x": ["n", 3]}, {"x": "1x3:8x3:8x3"}, False),
        ({"x": [1, 3], "y": [None, 3]}, {}, True),
        ({"x": [8, 3]}, {}, True),
        ({"x": None}, {}, True),
    ],
)
def test_a_batch_that_no_input_takes_is_refused(inputs, shapes, taken: bool) -> None:
    """One that is the fixed size already harms nobody."""
    target, model = find("tensorrt-rtx")(), with_inputs(**inputs)
    target.accepts(model, target.Config(shapes=shapes))
    config = target.Config(batch=8, shapes=shapes)
    if taken:
        target.accepts(model, config)
    else:
        with pytest.raises(UsageError, match=r"option batch: no input takes it.*leave batch out"):
            target.accepts(model, config)


@pytest.mark.parametrize("name", sorted(targets()))
def test_an_option_takes_its_choices_alone(name: str) -> None:
    config = find(name).Config
    for one in dataclasses.fields(config):
        if choices := one.metadata.get("choices"):
            with pytest.raises(UsageError, match=f"option {one.name} takes .* or {choices[-1]}, not 'other'"):
                config(**{one.name: "other"})
