"""Every pass on models that this project did not write: valid, runnable, unchanged in what a caller sees,
and the same when run twice.

A pass that is added to `passes/` is in this suite without being named here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.torch_bridge import unsupported
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.models import MODELS, beginning, load_foreign, shipped_with_onnx

pytestmark = pytest.mark.usefixtures("unguarded")
OWN = sorted(MODELS.glob("*/model.onnx"))
LIGHT = [pytest.param(path, marks=pytest.mark.slow) for path in shipped_with_onnx("light/light_*.onnx")]
# The PReLU cases are not valid at a later opset: its slope broadcasts differently since opset 7.
SMALL = [
    path
    for path in shipped_with_onnx("pytorch-converted/*/model.onnx")[::6]
    + shipped_with_onnx("pytorch-operator/*/model.onnx")[::8]
    if "PReLU" not in path.parent.name
]
FAST: dict[str, dict[str, object]] = {
    "retrain": {"epochs": 1, "batch": 2},
    "prune": {"min_size": 1},
    "prune_nm": {"min_size": 1},
    "svd": {"rounds": 2, "positions": 200},
}

COMPENSATED: dict[str, dict[str, object]] = {
    "int4 hessian": {"min_size": 16},
    "int8 hessian": {},
    "codebook hessian": {"min_size": 16, "sequential": True},
}
"""Passes whose rounding makes up for what it loses, besides."""

ALIKE = ("light_bvlc_alexnet", "light_inception_v1", "light_inception_v2", "light_vgg19", "light_zfnet512")
"""Whose layers are of the kinds that the other models have: rounding their wide ones with compensation takes minutes."""
MORE = {"prune_channels by answers": ("prune_channels", {"importance": "obs", "sparsity": 0.3})}
"""Passes with options that make another pass of them."""

GOES_ON = ("retrain", "prune_channels")
"""Run twice, they train on, or take a share of what is left."""


class RandomData(DataSource):
    """Two batches of random samples shaped like the model's inputs."""

    labelled = False
    fingerprint = "random"
    description = "random"

    def __init__(self, model: onnx.ModelProto) -> None:
        session = ort.session(model)
        self.feeds = [ort.random_feeds(session, batch=2, seed=seed) for seed in range(2)]
        self.count = sum(len(next(iter(feed.values()))) if feed else 0 for feed in self.feeds)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for feed in self.feeds:
            yield Batch(inputs=feed, labels=None)


def identity(path: Path) -> str:
    return path.stem if path.parent.name == "light" else path.parent.name


def context_for(model: onnx.ModelProto, data: RandomData | None = None) -> Context:
    data = data or RandomData(model)
    return Context(
        calibrator=StreamingCalibrator(data),
        trainer=TorchTrainer(TrainingSetup(data, teacher=model)),
        original=model,
    )


@pytest.fixture(scope="module", params=OWN + LIGHT + SMALL, ids=identity)
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """The large ones with an eighth of their channels, and of more than a hundred layers the first blocks: what they are
    made of is the same, and all have weights.
    """
    if request.param in OWN:
        return model_file.load(request.param)
    if request.param.parent.name == "light":
        return beginning(load_foreign(request.param, thinner=8), 400)
    return load_foreign(request.param)


@dataclass(frozen=True)
class Known:
    """What all passes on one model are compared with, found once."""

    content: bytes
    names: frozenset[str]
    outputs: dict[str, np.ndarray]
    context: Context


@pytest.fixture(scope="module")
def data(model: onnx.ModelProto) -> RandomData:
    return RandomData(model)


@pytest.fixture(scope="module")
def known(model: onnx.ModelProto, data: RandomData) -> Known:
    names = frozenset(node.name for node in import_model(model).nodes)
    outputs = ort.run(ort.session(model), data.feeds[0])
    return Known(model.SerializeToString(deterministic=True), names, outputs, context_for(model, data))


def options_of(case: str) -> tuple[str, dict[str, object]]:
    """The pass that is meant, and its options."""
    if case in COMPENSATED:
        return case.split()[0], {**COMPENSATED[case], "rounding": "hessian"}
    return MORE.get(case, (case, FAST.get(case, {})))


@pytest.mark.parametrize("case", sorted([*all_passes(), *COMPENSATED, *MORE]))
def test_contract(
    case: str, model: onnx.ModelProto, data: RandomData, known: Known, request: pytest.FixtureRequest
) -> None:
    if case in COMPENSATED and any(name in request.node.name for name in ALIKE):
        pytest.skip("its layers are of the kinds that other models have")
    context, (name, options) = known.context, options_of(case)
    instance = configure(all_passes()[name], options)
    if name == "retrain" and (lacking := unsupported(model)):
        with pytest.raises(
            LatheError, match=lacking[0].op
        ):  # only the bridge may lack an operator; it says which
            apply_pass(instance, model, context)
        return
    if name == "retrain" and not trainable(model.graph):
        with pytest.raises(LatheError, match="there is nothing to train"):
            apply_pass(instance, model, context)
        return
    after, report = apply_pass(instance, model, context)
    assert model.SerializeToString(deterministic=True) == known.content, (
        "a pass must not write into the model that it was given"
    )
    assert all(skip.node in known.names and skip.reason for skip in report.skips)
    if not report.edits:
        assert after is model
        return
    contract.check_structure(model, after, name)
    feeds = data.feeds[0]
    before, now = known.outputs, ort.run(ort.session(after), feeds)
    if instance.lossless:
        contract.check_outputs(before, now, type(instance))
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in now.items()
    }
    if name not in GOES_ON:
        content = after.SerializeToString(deterministic=True)
        again, _ = apply_pass(configure(all_passes()[name], options), after, context)
        assert after.SerializeToString(deterministic=True) == content
        if again is not after:  # the very same model computes the same
            contract.check_outputs(now, ort.run(ort.session(again), feeds), type(instance))


WITHOUT_WEIGHTS = onnx.helper.make_model(
    onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 4])],
    ),
    opset_imports=[onnx.helper.make_opsetid("", 17)],
    ir_version=8,
)


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_a_model_without_weights_is_left_alone(name: str) -> None:
    instance, context = configure(all_passes()[name], {}), context_for(WITHOUT_WEIGHTS)
    if name == "retrain":
        with pytest.raises(LatheError, match="there is nothing to train"):
            apply_pass(instance, WITHOUT_WEIGHTS, context)
        return
    after, report = apply_pass(instance, WITHOUT_WEIGHTS, context)
    assert after is WITHOUT_WEIGHTS
    assert not report.edits


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_without_data_a_pass_works_or_says_what_it_needs(name: str, lenet5: Path) -> None:
    instance = configure(all_passes()[name], {})
    if not instance.needs:
        apply_pass(instance, model_file.load(lenet5), Context())
        return
    with pytest.raises(LatheError, match=r"needs (calibration|training) data; give --"):
        apply_pass(instance, model_file.load(lenet5), Context())


def test_contract_notices_a_changed_output(lenet5: Path) -> None:
    model = model_file.load(lenet5)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.output[0].name = broken.graph.node[-1].output[0] = "other"
    with pytest.raises(LatheError, match="pass 'x' changed output 'logits'"):
        contract.check_structure(model, broken, "x")


def test_contract_notices_metadata_that_names_nothing(lenet5: Path) -> None:
    model = model_file.load(lenet5)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.metadata_props.add(key="lathe.sparse", value='{"gone.weight": "unstructured"}')
    with pytest.raises(LatheError, match=r"naming 'gone\.weight', which is not in the graph"):
        contract.check_structure(model, broken, "x")


def test_contract_notices_an_invalid_node(lenet5: Path) -> None:
    model = model_file.load(lenet5)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].op_type = "Convv"
    with pytest.raises(LatheError, match="wrote an invalid model"):
        contract.check_structure(model, broken, "x")


def test_contract_notices_an_unstamped_node(lenet5: Path) -> None:
    model = model_file.load(lenet5)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].name = "made"
    with pytest.raises(LatheError, match="made node 'made' without saying so"):
        contract.check_structure(model, broken, "x")


def test_contract_notices_wrong_numbers() -> None:
    fold = all_passes()["fold"]
    right = {"y": np.array([1.0, 2.0], np.float32)}
    contract.check_outputs(right, {"y": np.array([1.0, 2.000001], np.float32)}, fold)
    with pytest.raises(LatheError, match=r"lossless pass 'fold' changed output 'y' by 0\.05 relative"):
        contract.check_outputs(right, {"y": np.array([1.0, 2.1], np.float32)}, fold)


def test_contract_counts_names_that_the_import_gives() -> None:
    """A node without a name has one afterwards, and no pass made it."""
    nameless = onnx.ModelProto()
    nameless.CopyFrom(WITHOUT_WEIGHTS)
    nameless.graph.node[0].name = ""
    contract.check_structure(nameless, export_model(import_model(nameless)), "x")
    with pytest.raises(LatheError, match="made node '' without saying so"):
        contract.check_structure(nameless, nameless, "x")


def test_contract_makes_no_graph_where_every_node_has_a_name(
    lenet5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a tenth of a second of a network of a thousand nodes, at every step."""
    model = model_file.load(lenet5)
    monkeypatch.setattr(contract, "import_model", None)
    contract.check_structure(model, model, "x")
