"""training={...}: the options of a training as one option of a pass, how it is written, and refusals."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Recipe, load_recipe, parse_calls
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.passes.core.training_options import TrainingOptions, trainer_settings
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.passes.retrain import Retrain

NESTED = [Prune, Codebook]


@pytest.mark.parametrize("pass_class", NESTED)
def test_a_table_becomes_the_frozen_options(pass_class: type[Pass]) -> None:
    config = configure(pass_class, {"training": {"epochs": 20, "rate": 1}}).config
    assert config.training == TrainingOptions(epochs=20, rate=1.0)
    assert type(config.training.rate) is float
    assert configure(pass_class, {}).config.training is None
    assert configure(pass_class, {"training": None}).config.training is None
    assert configure(pass_class, {"training": {}}).config.training == TrainingOptions()


def test_python_gives_the_options_themselves() -> None:
    training = TrainingOptions(epochs=3)
    config = Prune.Config(sparsity=0.9, training=training)
    assert Prune(config).needs == ("trainer",)
    assert config == configure(Prune, {"sparsity": 0.9, "training": training}).config
    assert config == configure(Prune, {"sparsity": 0.9, "training": {"epochs": 3}}).config


def test_text_and_toml_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[[pass]]\nname = "prune"\nsparsity = 0.97\n'
        'training = { epochs = 20, decay = "constant", flip = true }\n'
    )
    text = "prune(sparsity=0.97, training={epochs: 20, decay: constant, flip: true})"
    recipe = load_recipe(path)
    assert recipe.steps == parse_calls(text, "--passes")
    assert str(recipe.steps[0]) == text
    assert recipe.passes()[0].config.training == TrainingOptions(epochs=20, decay="constant", flip=True)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "{epohcs: 2}",
            r"NAME\(training=\{...\}\) has no option 'epohcs'; "
            r"did you mean 'epochs'\?; see: optimize passes NAME",
        ),
        ("{epochs: 0}", r"NAME\(training=\{epochs: ...\}\) must be at least 1, not 0"),
        ("{epochs: 2.5}", r"NAME\(training=\{epochs: ...\}\) takes int, not 2.5"),
        ("{rate: fast}", r"NAME\(training=\{rate: ...\}\) takes float or none, not 'fast'"),
        ("{decay: linear}", r"NAME\(training=\{decay: ...\}\) must be one of cosine, onecycle, constant"),
        ("20", r"NAME\(training=...\) takes a table, \{option: value, ...\}, not 20"),
        ("true", r"NAME\(training=...\) takes a table, \{option: value, ...\}, not true"),
        ("{patience: 2}", r"give holdout too, such as retrain\(patience=2, holdout=0.1\)"),
        (
            "{holdout: 0.1}",
            "NAME: with training, only the last epoch's weights .* leave holdout to a retrain step",
        ),
    ],
)
@pytest.mark.parametrize("pass_class", NESTED)
def test_a_wrong_table_is_refused_with_the_place(pass_class: type[Pass], options: str, message: str) -> None:
    steps = parse_calls(f"{pass_class.name}(training={options})", "--passes")
    with pytest.raises(
        UsageError, match=f"^{message.replace('NAME', pass_class.name)}" if "NAME" in message else message
    ):
        Recipe(steps=steps).passes()


OLD: Mapping[str, object] = {"epochs": 20, "rate": 0.001, "batch": 128, "flip": True, "decay": "constant"}


@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("pass_class", NESTED)
def test_an_old_spelling_is_refused_with_the_new_one(pass_class: type[Pass], name: str) -> None:
    value = "true" if OLD[name] is True else OLD[name]
    with pytest.raises(UsageError) as caught:
        configure(pass_class, {name: OLD[name]})
    assert str(caught.value) == (
        f"pass '{pass_class.name}' has no option '{name}'; write training={{{name}: {value}}}"
    )


@pytest.mark.parametrize("field", [field.name for field in fields(TrainingOptions)])
def test_every_option_of_training_is_known_to_have_moved(field: str) -> None:
    assert field in Prune.moved
    assert (field in Codebook.moved) == (field != "seed"), "codebook has a seed of its own, for init=kmeans++"


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_what_moved_is_no_option_any_more(name: str) -> None:
    pass_class = all_passes()[name]
    assert not pass_class.moved.keys() & {field.name for field in fields(pass_class.Config)}


@pytest.mark.parametrize(
    "pass_class, option, value",
    [
        (Prune, "schedule", "linear"),
        (Prune, "settle", 0.5),
        (Prune, "until", 0.5),
        (Codebook, "every", 10),
        (Codebook, "freeze", 0.5),
    ],
)
def test_what_acts_while_training_is_refused_without(
    pass_class: type[Pass], option: str, value: object
) -> None:
    with pytest.raises(UsageError) as caught:
        configure(pass_class, {option: value})
    assert str(caught.value) == (
        f"{pass_class.name}: {option} is about training, and there is none; "
        "give training={epochs: ...} as well, or leave it out"
    )
    configure(pass_class, {option: value, "training": {}})


def test_the_seed_of_codebook_is_not_that_of_the_data() -> None:
    with pytest.raises(UsageError) as caught:
        configure(Codebook, {"seed": 3, "training": {}})
    assert str(caught.value) == (
        "codebook: seed is about init=kmeans++; for the order of the data, write training={seed: 3}"
    )
    config = configure(Codebook, {"init": "kmeans++", "seed": 3, "training": {"seed": 4}}).config
    assert (config.seed, config.training.seed) == (3, 4)


def test_retrain_has_them_as_its_own() -> None:
    assert configure(Retrain, {"epochs": 3, "rate": 0.01}).config.epochs == 3
    with pytest.raises(UsageError, match="pass 'retrain' has no option 'training'"):
        configure(Retrain, {"training": {"epochs": 3}})


def test_the_trainer_is_told_all_options_and_the_record_nests_them() -> None:
    config = configure(Prune, {"sparsity": 0.9, "training": {"epochs": 3}}).config
    settings = trainer_settings(config)
    assert settings.items() >= asdict(TrainingOptions(epochs=3)).items()
    assert settings["sparsity"] == 0.9
    assert "training" not in settings
    record = asdict(config)
    assert record["training"]["epochs"] == 3
    assert "epochs" not in record
