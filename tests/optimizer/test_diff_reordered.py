"""A network whose hidden channels were renumbered is the same network, and `diff` says so."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.diffing.diff import diff_models
from onnx_lathe.optimizer.diffing.reordered import reordered
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.ui import Ui
from tests.support.builders import random
from tests.support.codebooks import constants


def renumbered(path: Path, noise: float = 0.0) -> onnx.ModelProto:
    """LeNet-5 with the channels behind both convolutions in another order."""
    model, generator = onnx.load(path), np.random.default_rng(0)
    values = constants(model)
    orders = [generator.permutation(len(values[f"conv{layer}.bias"])) for layer in (1, 2)]
    places = values["fc1.weight"].shape[1] // len(orders[1])
    flat = (orders[1][:, None] * places + np.arange(places)).ravel()
    changed = {
        "conv1.weight": values["conv1.weight"][orders[0]],
        "conv1.bias": values["conv1.bias"][orders[0]],
        "conv2.weight": values["conv2.weight"][orders[1]][:, orders[0]],
        "conv2.bias": values["conv2.bias"][orders[1]],
        "fc1.weight": values["fc1.weight"][:, flat],
    }
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            array = changed[tensor.name]
            noisy = array + noise * array.std() * generator.standard_normal(array.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return model


def test_channels_in_another_order_are_told(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff_models(lenet5, renumbered(lenet5), Recipe(), Ui(quiet=True))
    rows = {one.name: one.reordered for one in found.stored}
    assert {name: one.axes for name, one in rows.items() if one is not None} == {
        "conv1.weight": (0,),
        "conv1.bias": (0,),
        "conv2.weight": (0, 1),
        "conv2.bias": (0,),
        "fc1.weight": (1,),
    }
    assert all(one is not None and one.sqnr == np.inf for one in rows.values())
    assert any("channels are in another order in" in note for note in found.notes)
    assert found.parts_at is None
    onnx.save(renumbered(lenet5), tmp_path / "other.onnx")
    assert main(["diff", str(lenet5), str(tmp_path / "other.onnx"), "--quiet", "--json"]) == 0
    assert '"axes": [' in capsys.readouterr().out
    assert main(["diff", str(lenet5), str(tmp_path / "other.onnx"), "--quiet"]) == 0
    assert "equal (axes 0 and 1)" in " ".join(capsys.readouterr().out.split())


def test_near_values_in_another_order_are_told(lenet5: Path) -> None:
    found = diff_models(lenet5, renumbered(lenet5, 0.01), Recipe(), Ui(quiet=True))
    near = {one.name: one.reordered for one in found.stored}
    assert near["conv2.weight"] is not None
    assert near["conv2.weight"].axes == (0, 1)
    assert near["conv2.weight"].sqnr == pytest.approx(40, abs=3)


def test_other_values_are_not_taken_for_another_order() -> None:
    weight = random(16, 8, 3, 3)
    assert reordered(weight, random(16, 8, 3, 3)) is None
    assert reordered(weight, weight + np.float32(0.01)) is None  # near as it stands
    assert reordered(weight[:1, :1, 0, 0], weight[:1, :1, 0, 0] * 2) is None
    same = np.ones((8, 4), np.float32)
    assert reordered(same, 3 * same) is None
    columns = np.random.default_rng(6).permutation(8)
    found = reordered(weight, weight[:, columns])
    assert found is not None
    assert found.axes == (1,)
