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
    from_data,
    parse_batch,
    parse_shapes,
    profiles,
    text,
)
from tests.support import quantized

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
    assert profiles(model, BATCH, {}) == {
        "a": Profile((1, 3, 8), (4, 3, 8), (32, 3, 8)),
        "b": Profile((1, 5), (4, 5), (32, 5)),
        "c": Profile((2, 1), (2, 4), (2, 32)),
    }


def test_an_initializer_is_no_input() -> None:
    model = with_inputs(a=["n", 3])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "a"))
    assert profiles(model, BATCH, {}) == {}


def test_sizes_that_the_model_leaves_open_come_from_the_data() -> None:
    model = with_inputs(image=["n", 3, "h", None], ids=["n", "length"], fixed=[1, 2], rows=["n", 4], any=None)
    samples = {"image": (8, 3, 48, 320), "ids": (8, 17), "fixed": (1, 2), "rows": (8, 4), "any": (8, 5)}
    found = from_data(model, BATCH, (), samples)
    assert {name: text(profile) for name, profile in found.items()} == {
        "image": "1x3x48x320:4x3x48x320:32x3x48x320",
        "ids": "1x17:4x17:32x17",
        "any": "1x5:4x5:32x5",
    }
    assert profiles(model, BATCH, parse_shapes({name: text(profile) for name, profile in found.items()}))
    assert set(from_data(model, BATCH, ("image",), samples)) == {"ids", "any"}
    assert from_data(model, BATCH, (), {}) == {}
    assert from_data(model, BATCH, (), {"image": (8, 3)}) == {}


def test_a_target_says_which_sizes_it_took_from_the_data() -> None:
    target = find("tensorrt-rtx")()
    config = target.Config(batch="1:4:32")
    model = with_inputs(image=["n", 3, "h", "w"])
    fitted, notes = target.fitted(model, config, {"image": (8, 3, 48, 320)})
    assert fitted.shapes == {"image": "1x3x48x320:4x3x48x320:32x3x48x320"}
    assert notes == [
        "input 'image' has sizes that are not fixed: built for 1x3x48x320:4x3x48x320:32x3x48x320, as the data has them; "
        "shapes={image: MIN:OPT:MAX} takes others"
    ]
    assert target.fitted(model, config, {}) == (config, [])
    assert find("onnx")().fitted(model, None, {"image": (8, 3, 48, 320)}) == (None, [])


@pytest.mark.parametrize("value, expected", [("1:8:32", (1, 8, 32)), (16, (16, 16, 16)), ("2", (2, 2, 2))])
def test_batch_is_three_sizes_or_one(value, expected) -> None:
    assert parse_batch(value) == Profile(*((size,) for size in expected))


def test_shapes_are_three_or_one() -> None:
    assert parse_shapes({"x": "1x3:2x3:4x3", "y": "2x2", "z": 5}) == {
        "x": Profile((1, 3), (2, 3), (4, 3)),
        "y": Profile((2, 2), (2, 2), (2, 2)),
        "z": Profile((5,), (5,), (5,)),
    }
    assert profiles(with_inputs(x=["n", "m"]), BATCH, parse_shapes({"x": "1x3:2x3:4x3"})) == {
        "x": Profile((1, 3), (2, 3), (4, 3))
    }
    assert profiles(with_inputs(x=None), BATCH, parse_shapes({"x": "4x4"})) == {
        "x": Profile((4, 4), (4, 4), (4, 4))
    }


@pytest.mark.parametrize("value", ["", "0", "1:2", "8:4:2", "1:2:3:4", "a", "1x2", "-1:1:2", "1:8:"])
def test_a_wrong_batch_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^option batch "):
        parse_batch(value)


@pytest.mark.parametrize("value", ["1x", "1x0", "1x3:2x3", "1x3:2x3:4", "4x3:2x3:1x3", "1x3:2x2:4x3"])
def test_wrong_shapes_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^option shapes, 'x': "):
        parse_shapes({"x": value})


@pytest.mark.parametrize(
    "inputs, shapes, message",
    [
        (
            {"image": ["n", 3, "h", 8]},
            {},
            r"input 'image': dimension 2 \('h'\) is not fixed; give data.*such as 1x3x224x8:4x3x224x8:32x3x224x8",
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
