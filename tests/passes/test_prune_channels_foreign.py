"""prune_channels on models that this project did not write: 30 % of the channels go, and what is
left runs and is right.

What is right: the whole network with the removed channels' weights and biases at zero, and the one with the
weights that read them at zero.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core import contract
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from tests.support import models
from tests.support.channels import assert_same_outputs, prune_channels, shapes, zeroed

pytestmark = pytest.mark.usefixtures("unguarded")

LIGHT = models.shipped_with_onnx("light/light_*.onnx")
# The PReLU cases are not valid at a later opset: its slope broadcasts differently since opset 7.
SMALL = [
    path
    for path in models.shipped_with_onnx("pytorch-converted/*/model.onnx")[::2]
    if "PReLU" not in path.parent.name
]


def written(model: onnx.ModelProto) -> dict[str, int]:
    """Layer -> how many channels its weight writes, counted in the file: every Conv, and the Gemm of
    classifiers.
    """
    found = shapes(model)
    return {
        node.name: found[node.input[1]][0 if node.op_type == "Conv" or _transposed(node) else 1]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    }


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def comparable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without local response normalization, which keeps all channels, and with what the softmax reads."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        if node.op_type in ("LRN", "Softmax"):
            node.op_type = "Identity"
            del node.attribute[:]
    return changed


def assert_right(model: onnx.ModelProto, after: onnx.ModelProto, sparsity: float, batch: int = 2) -> None:
    with pytest.raises(AssertionError):
        assert_same_outputs(model, after, 1e-2, batch)  # else any network would pass
    for by_writers in (False, True):
        assert_same_outputs(zeroed(model, sparsity, by_writers), after, 1e-4, batch)


@pytest.mark.slow
@pytest.mark.parametrize("light", LIGHT, ids=lambda path: path.stem, indirect=True)
def test_every_light_model_can_lose_thirty_percent(light: onnx.ModelProto) -> None:
    """Thirty percent of the channels that layers write, all layers together, but for the last layer's,
    which are the classes.

    A little more is asked for, because counts are rounded in each group. No layer is left out: trunks of
    residual additions, branches of concatenations and the shuffled channels between grouped convolutions
    lose theirs.
    """
    light = comparable(light)
    after, report = prune_channels(light, sparsity=0.32)
    contract.check_structure(light, after, "prune_channels")  # the checker, with shape inference
    before, left = written(light), written(after)
    classes = list(before)[-1]
    assert [skip.node for skip in report.skips] == [classes]
    assert left.pop(classes) == before.pop(classes)
    assert all(left[layer] < count for layer, count in before.items())
    assert 0.65 <= sum(left.values()) / sum(before.values()) <= 0.7
    session = ort.session(after, threads=1)
    outputs = ort.run(session, ort.random_feeds(session, batch=1, seed=0))
    assert all(np.isfinite(values).all() for values in outputs.values())
    assert_right(light, after, 0.32, batch=1)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.parent.name)
def test_small_models_keep_their_interface(path: Path) -> None:
    model = models.load_foreign(path)
    after, _ = prune_channels(model, sparsity=0.5)
    contract.check_structure(model, after, "prune_channels")
    assert_same_outputs(zeroed(model, 0.5), after, 1e-4)


@pytest.mark.parametrize("name", ["lenet300-mnist", "lenet5-mnist", "resnet20-cifar10"])
def test_own_models(name: str) -> None:
    model = model_file.load(models.MODELS / name / "model.onnx")
    after, report = prune_channels(model, sparsity=0.3)
    contract.check_structure(model, after, "prune_channels")
    assert report.metrics["channels_removed"] == pytest.approx(0.3, abs=0.02)
    assert_right(model, after, 0.3)
