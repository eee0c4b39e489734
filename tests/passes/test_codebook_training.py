"""codebook(training={...}): shared values while training runs, by a trainer that moves weights at random, and
by the real one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.numerics.clustering.codebook_pools import (
    Clustered,
    CodebookGroup,
    Piece,
    channel_groups,
)
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import Rule
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data import model_classes, model_inputs, open_source, take
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.builders import build, random, run
from tests.support.codebooks import constants, decoded, share, two_layers
from tests.support.models import MODELS


@dataclass
class Result:
    values: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    kept: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class DriftingTrainer:
    """A Trainer of passes/core/services.py: every step adds the same small drift to each weight, and a
    little noise.
    """

    steps: int = 40
    ignore_shaping: bool = False
    spoil: str = ""
    models: list[onnx.ModelProto] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[float, dict[str, np.ndarray]]] = field(default_factory=list)
    """(share of the training that is over, stand-ins) of every call."""

    def train(
        self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
    ) -> Result:
        onnx.checker.check_model(model, full_check=True)
        self.models.append(model)
        self.settings = dict(settings)
        assert shaping is not None
        generator = np.random.default_rng(settings["seed"])
        latent = {
            name: value.copy() for name, value in constants(model).items() if name in trainable(model.graph)
        }
        drift = {
            name: 0.02 * generator.standard_normal(value.shape).astype(np.float32)
            for name, value in latent.items()
        }
        for step in range(self.steps):
            if step % shaping.every == 0:
                self.calls.append((step / self.steps, dict(shaping(step / self.steps, latent))))
            for name in latent:
                jitter = np.float32(0.002) * generator.standard_normal(drift[name].shape).astype(np.float32)
                latent[name] = (
                    latent[name] + (np.float32(np.nan) if name == self.spoil else drift[name]) + jitter
                )
        self.calls.append((1.0, dict(shaping(1.0, latent))))
        return Result(
            latent if self.ignore_shaping else latent | self.calls[-1][1],
            {"epochs": float(settings["epochs"])},
        )


def trained(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Any, DriftingTrainer]:
    trainer = DriftingTrainer()
    after, report = share(
        model, context=Context(trainer=trainer), **({"training": {"epochs": 2}, "every": 5} | options)
    )
    return after, report, trainer


def sparse(fraction: float = 0.8) -> onnx.ModelProto:
    graph = import_model(two_layers())
    for name in "ab":
        tensor = graph.tensors()[name]
        tensor.values = np.where(
            np.abs(tensor.values) < np.quantile(np.abs(tensor.values), fraction), np.float32(0), tensor.values
        )
    set_sparse_tensors(graph, dict.fromkeys("ab", "unstructured"))
    return export_model(graph)


OPTIONS = [
    {},
    {"tradeoff": 0.05},
    {"share": "network"},
    {"share": "channel_group", "groups": 3},
    {"mantissa": 7},
    {"freeze": 0.0},
    {"freeze": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("start", [two_layers, sparse])
def test_what_training_returns_is_stored_exactly(options: dict[str, object], start: Any) -> None:
    model = start()
    after, report, trainer = trained(model, bits=3, **options)
    last = trainer.calls[-1][1]
    assert last.keys() == {"a", "b"}
    for name in "ab":
        np.testing.assert_array_equal(decoded(after, name), last[name])
        if start is sparse:
            np.testing.assert_array_equal(last[name] == 0, constants(model)[name] == 0)
    groups = options.get("groups", 1)
    books = [value for name, value in constants(after).items() if "codebook" in name]
    assert len(books) == (1 if options.get("share") == "network" else 2 * groups)
    assert all(book.size <= 8 for book in books)
    assert [edit.node for edit in report.edits if "indices, trained" in edit.what] == ["MatMul_0", "Gemm_2"]
    assert "weight_sqnr_db" not in report.metrics
    assert report.metrics["epochs"] == 2
    x = random(3, 40)
    bias = constants(after)["bias"]
    assert (bias != constants(model)["bias"]).any(), "what is not shaped is trained as well"
    np.testing.assert_allclose(
        run(after, {"x": x})["y"], np.maximum(x @ last["a"], 0) @ last["b"].T + bias, rtol=1e-4, atol=1e-3
    )


def test_a_group_without_zeros_is_stored_exactly() -> None:
    """Of a weight whose other groups have zeros that stay."""
    weight = random(40, 50)
    weight[:, 30:] = np.where(np.abs(weight[:, 30:]) < 1, np.float32(0), weight[:, 30:])
    graph = import_model(build("(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }", 21, w=weight))
    set_sparse_tensors(graph, {"w": "unstructured"})
    after, _, trainer = trained(export_model(graph), bits=3, share="channel_group", groups=5)
    np.testing.assert_array_equal(decoded(after, "w"), trainer.calls[-1][1]["w"])


def test_one_bit_is_not_enough_to_train_beside_zeros_that_stay() -> None:
    graph = import_model(
        build(
            "(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }",
            21,
            w=(random(40, 50) > 0).astype(np.float32),
        )
    )
    set_sparse_tensors(graph, {"w": "unstructured"})
    _, report, trainer = trained(export_model(graph), bits=1)
    assert [skip.reason.endswith("give it 2 bits") for skip in report.skips] == [True]
    assert trainer.calls == []


def test_what_was_trained_and_then_not_stored_as_a_codebook_is_reported() -> None:
    model = build("(float[N, 40] x) => (float[N, 7] y) { y = MatMul (x, w) }", 21, w=random(40, 7))
    after, report, trainer = trained(model, bits=8)
    np.testing.assert_array_equal(constants(after)["w"], trainer.calls[-1][1]["w"])
    assert "bytes would become" in report.skips[0].reason
    assert [(edit.node, edit.what) for edit in report.edits] == [("MatMul_0", "w was trained")]


def test_every_call_projects_and_at_last_only_centroids_move() -> None:
    _, _, trainer = trained(two_layers(), bits=3, every=4, freeze=0.5)
    assert [done for done, _ in trainer.calls] == [step / 40 for step in range(0, 40, 4)] + [1.0]
    labels = []
    for done, weights in trainer.calls:
        values, codes = np.unique(weights["a"], return_inverse=True)
        assert values.size <= 8, done
        labels.append((done, values, codes))
    frozen = [(values, codes) for done, values, codes in labels if done >= 0.5]
    moving = [codes for done, _, codes in labels if done < 0.5]
    assert len(frozen) == 6
    assert all((codes == frozen[0][1]).all() for _, codes in frozen)
    assert any((codes != moving[0]).any() for codes in moving)
    assert (frozen[-1][0] != frozen[0][0]).any()


def test_centroids_are_means_of_the_weights_underneath() -> None:
    shaping = Clustered([(CodebookGroup(4, False, (Piece("w"),)), Rule())], every=1, freeze=0.0)
    weight = random(1000)
    first = shaping(0.0, {"w": weight})["w"]
    moved = weight + random(1000)
    last = shaping(1.0, {"w": moved})["w"]
    for value in np.unique(first):
        cell = first == value
        assert np.unique(last[cell]).size == 1
        np.testing.assert_allclose(last[cell][0], moved[cell].mean(dtype=np.float64), atol=1e-6)


def test_zeros_are_those_of_the_first_call() -> None:
    shaping = Clustered([(CodebookGroup(4, True, (Piece("w"),)), Rule(tradeoff=0.1))], every=1, freeze=0.6)
    weight = random(1000)
    weight[::2] = 0
    for done in (0.0, 0.5, 0.7, 1.0):
        moved = weight + np.float32(0.5 * done) * random(1000)
        np.testing.assert_array_equal(shaping(done, {"w": moved})["w"] == 0, weight == 0)


def test_a_first_call_at_the_end_is_enough() -> None:
    shaping = Clustered([(CodebookGroup(4, False, (Piece("w"),)), Rule())], every=1, freeze=0.8)
    assert np.unique(shaping(1.0, {"w": random(1000)})["w"]).size == 4


def test_the_weights_given_are_not_written_to() -> None:
    weight = random(6, 100)
    weight.flags.writeable = False
    pools = [(CodebookGroup(4, False, (piece,)), Rule()) for piece in channel_groups("w", 0, 6, 4)]
    shaped = Clustered(pools, every=1, freeze=0.8)(0.0, {"w": weight})["w"]
    assert shaped.shape == weight.shape
    assert shaped.dtype == np.float32


def test_weights_that_are_not_trained_are_left_out() -> None:
    pools = [(CodebookGroup(4, False, (Piece(name),)), Rule()) for name in "wv"]
    assert Clustered(pools, every=1, freeze=0.8)(0.0, {"w": random(1000)}).keys() == {"w"}


def test_a_tradeoff_keeps_codes_short_while_training_runs() -> None:
    entropies = []
    for tradeoff in (0.0, 0.1):
        _, report, trainer = trained(two_layers(), bits=4, tradeoff=tradeoff)
        counts = np.unique(trainer.calls[-1][1]["a"], return_counts=True)[1]
        entropies.append(entropy_bits(counts))
    assert entropies[1] < entropies[0] - 0.5
    assert "nearest_entropy_bits" not in report.metrics, (
        "nobody knows what the nearest values would have been trained to"
    )
    assert report.metrics["entropy_bits"] == pytest.approx(entropies[1], abs=0.3)


def test_biases_and_earlier_codebooks_are_shaped_too() -> None:
    once, _ = share(two_layers(), bits=3)
    after, report, trainer = trained(once, biases=2, mantissa=3)
    last = trainer.calls[-1][1]
    assert last.keys() == {"a_codebook", "b_codebook", "bias"}
    for name, value in last.items():
        np.testing.assert_array_equal(constants(after)[name], value)
        np.testing.assert_array_equal(round_mantissa(value, 3), value)
    assert np.unique(last["bias"]).size <= 4
    assert [edit.what.endswith("trained") for edit in report.edits] == [True] * 3


def test_the_trainer_gets_the_float_model_and_all_options() -> None:
    model = two_layers()
    _, _, trainer = trained(model, bits=2, training={"rate": 0.01, "seed": 5})
    assert [node.op_type for node in trainer.models[0].graph.node] == ["MatMul", "Relu", "Gemm"]
    assert {
        "rate": 0.01,
        "seed": 5,
        "epochs": 2,
        "batch": 64,
        "distill": 0.9,
        "bits": 2,
    }.items() <= trainer.settings.items()


def test_a_hook_that_ignores_shared_values_gets_them_afterwards() -> None:
    trainer = DriftingTrainer(ignore_shaping=True)
    after, report = share(two_layers(), context=Context(trainer=trainer), bits=3, training={"epochs": 1})
    assert constants(after)["a_codebook"].size == 8
    assert "dB signal to noise" in report.edits[-1].what


@pytest.mark.parametrize(
    "name, message",
    [("a", "training made a NaN or infinite"), ("bias", "training made bias NaN or infinite")],
)
def test_training_that_diverges_is_an_error(name: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        share(
            two_layers(),
            context=Context(trainer=DriftingTrainer(spoil=name)),
            training={"epochs": 1},
            biases=2,
        )


@pytest.mark.parametrize("value", [random(3), np.float64(1)], ids=["shape", "dtype"])
def test_a_trainer_that_returns_something_else_is_an_error(value: np.ndarray) -> None:
    class Wrong(DriftingTrainer):
        def train(
            self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
        ) -> Result:
            return Result({"bias": np.asarray(value)}, {})

    with pytest.raises(PassError, match=r"training returned 'bias' as .*, which is no initializer"):
        share(two_layers(), context=Context(trainer=Wrong()), training={"epochs": 1})


def test_training_without_anything_to_share_is_not_begun() -> None:
    trainer = DriftingTrainer()
    _, report = share(two_layers(), context=Context(trainer=trainer), training={"epochs": 1}, layers={"*": 0})
    assert report.edits == []
    assert trainer.models == []


def test_only_epochs_need_a_trainer() -> None:
    assert configure(Codebook, {"training": {"epochs": 1}}).needs == ("trainer",)
    with pytest.raises(PassError, match="training data"):
        share(two_layers(), training={"epochs": 1})


@pytest.mark.slow
def test_training_recovers_what_sharing_costs(mnist: Path) -> None:
    """Four values a layer: 2,560 images of training, labels or none, bring back most of what they cost;
    nothing else is lost.
    """
    pytest.importorskip("torch")
    model = model_file.load(MODELS / "lenet300-mnist" / "model.onnx")
    data = open_source(f"{mnist}:train", model_inputs(model), "scale=1/255", model_classes(model))
    images = next(
        iter(open_source(f"{mnist}:test", model_inputs(model), "scale=1/255", None).batches(500))
    ).inputs
    trainer = TorchTrainer(TrainingSetup(take(data, 2560), model))
    (expected,) = run(model, images).values()
    errors = []
    for options in ({}, {"training": {"epochs": 2}, "every": 5, "tradeoff": 0.01}):
        after, report = share(model, context=Context(trainer=trainer), bits=2, **options)
        (found,) = run(after, images).values()
        errors.append(float(np.square(expected - found).sum() / np.square(expected).sum()))
        assert [constants(after)[name].size for name in constants(after) if name.endswith("_codebook")] == [
            4,
            4,
            4,
        ]
    assert errors[1] < 0.5 * errors[0]
    assert report.metrics["last_loss"] < report.metrics["first_loss"]
    assert [edit.what.split(", ")[2] for edit in report.edits if "indices" in edit.what] == ["trained"] * 3
