"""How many channels go, and which: scope, MACs, multiples, options per layer, importance from data, and
what contradicts itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.passes.prune_channels.prune_channels import PruneChannels
from onnx_lathe.passes.prune_nm import PruneNM
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.builders import build, random, run
from tests.support.channels import prune_channels, shapes

THREE = "(float[N, 8] x) => (float[N, 4] y) { a = MatMul (x, u) b = Relu (a) d = MatMul (b, v) e = Relu (d) y = MatMul (e, w) }"
BN = "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y) { a = Conv (x, u) b = BatchNormalization (a, g, s, m, n) y = Conv (b, v) }"


def three() -> onnx.ModelProto:
    return build(THREE, u=random(8, 40), v=random(40, 20), w=random(20, 4))


def widths(model: onnx.ModelProto) -> tuple[int, int]:
    found = shapes(model)
    assert found["u"][1] == found["v"][0]
    assert found["v"][1] == found["w"][0]
    return found["u"][1], found["v"][1]


def test_every_group_loses_the_same_share() -> None:
    after, report = prune_channels(three(), sparsity=0.25)
    assert widths(after) == (30, 15)
    assert report.metrics == {"channels_removed": 0.25}


def test_layers_have_shares_of_their_own() -> None:
    after, report = prune_channels(three(), sparsity=0.25, layers={"u": 0.5, "MatMul_2": 0.0})
    assert widths(after) == (20, 20)
    assert ("MatMul_2", "its sparsity is set to 0") in [(skip.node, skip.reason) for skip in report.skips]


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UsageError, match=r"prune_channels\(layers=\.\.\.\): no weight or layer is named 'q'"):
        prune_channels(three(), layers={"q": 0.5})


def test_global_scope_takes_the_share_of_all_together() -> None:
    u, v, w = random(8, 40), random(40, 20), random(20, 4)
    u[:, :25] *= 1e-3
    after, report = prune_channels(build(THREE, u=u, v=v, w=w), sparsity=0.4, scope="global")
    first, second = widths(after)
    assert first + second == 36
    assert first <= 16
    assert report.metrics["channels_removed"] == pytest.approx(0.4)


def test_global_scope_takes_more_than_nine_tenths_if_asked() -> None:
    model = build(THREE, u=random(8, 100), v=random(100, 100), w=random(100, 4))
    _, report = prune_channels(model, sparsity=0.95, scope="global")
    assert report.metrics == {"channels_removed": 0.95}


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_macs_reach_what_was_asked_for(share: float) -> None:
    model = three()
    after, _ = prune_channels(model, macs=share)
    before, now = measure(model).macs, measure(after).macs
    assert before is not None
    assert now is not None
    assert share - 0.05 < now / before <= share


def test_macs_that_cannot_be_reached_are_refused_with_what_can() -> None:
    with pytest.raises(
        PassError, match=r"prune_channels\(macs=0\.01\) cannot be reached: \d+ % of the MACs are left"
    ):
        prune_channels(three(), macs=0.01)


def test_macs_need_shapes() -> None:
    model = build(
        "(float[N, 3, H, W] x) => (float[N, 4, I, J] y) { a = Conv (x, u) y = Conv (a, v) }",
        u=random(8, 3, 1, 1),
        v=random(4, 8, 1, 1),
    )
    with pytest.raises(
        PassError, match=r"the shapes at Conv_0 are not known; fix the sizes of the model's inputs"
    ):
        prune_channels(model, macs=0.5)


@pytest.mark.parametrize("amount", [{"sparsity": 0.3}, {"sparsity": 0.3, "scope": "global"}, {"macs": 0.5}])
def test_what_is_left_is_a_multiple(amount: dict[str, Any]) -> None:
    after, _ = prune_channels(three(), keep_multiple=8, **amount)
    assert all(left % 8 == 0 or left == full for left, full in zip(widths(after), (40, 20), strict=True))


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_macs_are_reached_with_multiples_too(multiple: int) -> None:
    model = three()
    after, _ = prune_channels(model, macs=0.5, keep_multiple=multiple)
    before, now = measure(model).macs, measure(after).macs
    assert before is not None
    assert now is not None
    assert now / before <= 0.5
    assert all(
        left % multiple == 0 or left == full for left, full in zip(widths(after), (40, 20), strict=True)
    )


def test_at_least_one_channel_stays() -> None:
    after, _ = prune_channels(three(), sparsity=0.99)
    assert widths(after) == (1, 1)


def test_a_split_keeps_something_on_both_sides() -> None:
    u = random(10, 3, 1, 1)
    u[:5] *= 1e-3
    text = "(float[N, 3, 4, 4] x) => (float[N, 5, H, W] y) { a = Conv (x, u) b, d = Split <axis = 1> (a, z) "
    text += "e = Conv (b, v) f = Conv (d, w) y = Add (e, f) }"
    after, _ = prune_channels(
        build(text, u=u, z=np.array([5, 5]), v=random(5, 5, 1, 1), w=random(5, 5, 1, 1)), sparsity=0.5
    )
    assert shapes(after)["u"][0] == 5
    assert shapes(after)["v"][1] == 1


def test_scale_goes_by_batch_normalization() -> None:
    g = np.arange(1, 11, dtype=np.float32) * np.float32([1, -1] * 5)
    model = build(
        BN,
        u=random(10, 3, 1, 1),
        v=random(5, 10, 1, 1),
        g=g[::-1].copy(),
        s=random(10),
        m=random(10),
        n=np.ones(10, np.float32),
    )
    after, _ = prune_channels(model, sparsity=0.3, importance="scale")
    left = next(
        onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer if tensor.name == "g"
    )
    np.testing.assert_array_equal(left, g[::-1][:7])


def test_scale_without_batch_normalization_is_skipped() -> None:
    _, report = prune_channels(three(), importance="scale")
    assert not report.edits
    assert [skip.reason for skip in report.skips][1:] == [
        "nothing says how important its channels are; give importance=l2"
    ] * 2


class Observed:
    """A calibrator that runs the model on two batches."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.feeds = batches

    def statistics(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Mapping[str, Any]:
        raise NotImplementedError

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        for x in self.feeds:
            found = run(watched, {"x": x})
            yield {name: found[name] for name in tensors}


def test_activation_goes_by_what_reaches_the_next_layer() -> None:
    u, v, w = random(8, 40), random(40, 20), random(20, 4)
    u[:, :4] = -np.abs(u[:, :4])  # these never get through the ReLU when inputs are positive
    v[4:8] = 0  # these are never read
    batches = [np.abs(random(16, 8)) for _ in range(2)]
    after, _ = prune_channels(
        build(THREE, u=u, v=v, w=w),
        Context(calibrator=Observed(batches)),
        sparsity=0.2,
        importance="activation",
    )
    left = next(
        onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer if tensor.name == "u"
    )
    np.testing.assert_array_equal(left, u[:, 8:])


class Labelled(DataSource):
    """Random samples with labels, or without."""

    fingerprint = description = "random"

    def __init__(self, labelled: bool = True) -> None:
        self.labelled, self.count, self.x = labelled, 192, random(192, 8)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            rows = slice(start, min(start + size, self.count))
            yield Batch(
                inputs={"x": self.x[rows]}, labels=np.arange(self.count)[rows] % 4 if self.labelled else None
            )


def test_taylor_is_the_gradient_times_the_channel() -> None:
    """Against gradients by finite differences of the loss, through a gate on each hidden unit."""
    u, v, w = 0.3 * random(8, 10), 0.3 * random(10, 6), random(6, 4)
    model, data = build(THREE, u=u, v=v, w=w), Labelled()
    after, _ = prune_channels(
        model,
        Context(trainer=TorchTrainer(TrainingSetup(data, teacher=model))),
        sparsity=0.5,
        importance="taylor",
        layers={"v": 0.0},
    )
    slopes = np.zeros(10)
    for batch in data.batches(64):
        for unit in range(10):
            gate = np.ones(10)
            gate[unit] = 1 + 1e-4
            slopes[unit] += abs(_loss(batch, u * gate, v, w) - _loss(batch, u * (2 - gate), v, w))
    kept = np.sort(np.argsort(slopes)[5:])
    left = next(
        onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer if tensor.name == "u"
    )
    np.testing.assert_array_equal(left, u[:, kept])


def _loss(batch: Batch, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> float:
    scores = np.maximum(np.maximum(batch.inputs["x"] @ u.astype(np.float64), 0) @ v, 0) @ w
    assert batch.labels is not None
    return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), batch.labels]))


def test_taylor_without_labels_is_refused() -> None:
    model = three()
    with pytest.raises(PassError, match=r"prune_channels\(importance=taylor\) needs labelled data"):
        prune_channels(
            model,
            Context(trainer=TorchTrainer(TrainingSetup(Labelled(labelled=False), teacher=model))),
            importance="taylor",
        )


def test_taylor_of_a_weight_that_is_not_trained_is_refused() -> None:
    class Other:
        def train(
            self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
        ) -> Any:
            assert shaping is not None
            return shaping(0.0, {})

    with pytest.raises(PassError, match="weight 'u' is not trained, so it has no gradient"):
        prune_channels(three(), Context(trainer=Other()), importance="taylor")


@pytest.mark.parametrize(
    ("importance", "needs"),
    [("l2", ()), ("activation", ("calibrator",)), ("taylor", ("trainer", "gradients"))],
)
def test_what_the_pass_needs_follows_from_importance(importance: str, needs: tuple[str, ...]) -> None:
    assert configure(PruneChannels, {"importance": importance}).needs == needs


def test_a_retrain_step_follows_and_the_network_learns_again() -> None:
    model, data = build(THREE, u=random(8, 40), v=random(40, 20), w=random(20, 4)), Labelled()
    context = Context(trainer=TorchTrainer(TrainingSetup(data, teacher=model)))
    pruned, _ = prune_channels(model, context, sparsity=0.5)
    after, report = apply_pass(configure(Retrain, {"epochs": 20}), pruned, context)
    assert shapes(after) == shapes(pruned)
    assert report.metrics["last_loss"] < 0.8 * report.metrics["first_loss"]


def test_lost_inputs_make_a_pattern_unstructured() -> None:
    graph = import_model(three())
    set_sparse_tensors(graph, {"u": "2:4", "v": "2:4", "w": "unstructured"})
    after, _ = prune_channels(export_model(graph), sparsity=0.25, layers={"v": 0.0})
    assert metadata.read_sparse(after.metadata_props) == {
        "u": "2:4",
        "v": "unstructured",
        "w": "unstructured",
    }


def test_lost_outputs_leave_a_pattern_as_it_is() -> None:
    graph = import_model(three())
    set_sparse_tensors(graph, {"v": "2:4"})
    after, _ = prune_channels(export_model(graph), sparsity=0.25, layers={"u": 0.0})
    assert widths(after) == (40, 15)
    assert metadata.read_sparse(after.metadata_props) == {"v": "2:4"}


CONTRADICTIONS: dict[str, tuple[type[Pass], dict[str, object]]] = {
    r"^pass 'prune' has no option 'pattern'; whole channels go with prune_channels\(...\)": (
        Prune,
        {"pattern": "channels", "epochs": 2},
    ),
    "^prune_nm: n must be below m, such as n=2, m=4, not n=4, m=2$": (PruneNM, {"n": 4, "m": 2}),
    r"^prune_nm\(n=...\) must be at least 1, not 0$": (PruneNM, {"n": 0}),
    "^pass 'prune_channels' has no option 'epochs'": (PruneChannels, {"epochs": 2}),
    "^pass 'prune_nm' has no option 'epochs'": (PruneNM, {"epochs": 2}),
    "^pass 'prune_channels' has no option 'score'": (PruneChannels, {"score": "lamp", "scope": "global"}),
    "^prune_channels: sparsity says nothing with macs; leave it out$": (
        PruneChannels,
        {"sparsity": 0.3, "macs": 0.5},
    ),
    "^prune_channels: scope says nothing with macs; leave it out$": (
        PruneChannels,
        {"scope": "global", "macs": 0.5},
    ),
    "^pass 'prune_nm' has no option 'sparsity'": (PruneNM, {"sparsity": 0.3}),
    "^prune_nm: a value in layers can only be 0, which leaves a layer as it is$": (
        PruneNM,
        {"layers": {"u": 0.9}},
    ),
    r"^pass 'prune' has no option 'macs'; write prune_channels\(macs=0.5\)$": (Prune, {"macs": 0.5}),
    "a sparsity must be below 1; a layer without channels computes nothing": (
        PruneChannels,
        {"sparsity": 1.0},
    ),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(message: str) -> None:
    pass_class, options = CONTRADICTIONS[message]
    with pytest.raises(UsageError, match=message):
        configure(pass_class, options)
