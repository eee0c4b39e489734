"""Recipes as text and as TOML, and every way to get them wrong."""

from pathlib import Path

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Call, Recipe, load_recipe, parse_calls, with_tuning
from tests.support.models import MODELS


def test_passes_with_and_without_options() -> None:
    calls = parse_calls("fold, prune(sparsity=0.9, scope=global),retrain(epochs=2) , int8", "--passes")
    assert calls == (
        Call("fold", {}),
        Call("prune", {"sparsity": 0.9, "scope": "global"}),
        Call("retrain", {"epochs": 2}),
        Call("int8", {}),
    )


def test_options_belong_to_one_occurrence() -> None:
    calls = parse_calls("retrain(epochs=2),codebook,retrain", "--passes")
    assert [call.options for call in calls] == [{"epochs": 2}, {}, {}]


@pytest.mark.parametrize(
    "text, value",
    [
        ("1", 1),
        ("-2", -2),
        ("1e-3", 1e-3),
        ("90%", 0.9),
        ("true", True),
        ("none", None),
        ("word", "word"),
        ('"a, b"', "a, b"),
        ('{"conv*": 0.5, fc1.weight: 90%}', {"conv*": 0.5, "fc1.weight": 0.9}),
        ("{}", {}),
        ("sm86+sm89", "sm86+sm89"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_calls(f"p(x={text})", "--passes")[0].options == {"x": value}


def test_a_table_needs_no_blank_behind_its_colons() -> None:
    found = parse_calls("p(x={epochs:3, rate:0.1, conv1: 50%})", "--passes")[0].options
    assert found == {"x": {"epochs": 3, "rate": 0.1, "conv1": 0.5}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("prune(sparsity=0.9", r"expected '\)' behind the options of 'prune', found 'the end'"),
        ("prune(0.9)", "expected '=' behind '0.9'"),
        ("prune sparsity", "expected ',' behind 'prune', found 'sparsity'"),
        ("prune(sparsity=0.5, sparsity=0.6)", "'prune' has 'sparsity' twice"),
        ("prune('x", "a quote is not closed"),
        ("(prune)", r"expected a name, found '\('"),
        ("p(x={a: 1", "behind the table"),
        ("p(x={a: 1, a: 2})", "'a' is there twice"),
        ("p(x=)", r"expected a value, found '\)'"),
    ],
)
def test_bad_syntax_says_where(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_calls(text, "--passes")


@pytest.mark.parametrize(
    "text, message",
    [
        ("prnue", r"there is no pass 'prnue'; did you mean 'prune'\?"),
        ("prune(sparsty=0.5)", r"pass 'prune' has no option 'sparsty'; did you mean 'sparsity'\?"),
        ("prune(sparsity=1.5)", r"prune\(sparsity=...\) must be"),
        ("prune(sparsity=high)", r"prune\(sparsity=...\) takes float, not 'high'"),
        ("retrain(epochs=2.5)", r"retrain\(epochs=...\) takes int, not 2.5"),
        ("codebook,prune", "pass 'prune' must come before 'codebook': "),
        ("int8,codebook", "pass 'codebook' must come before 'int8': "),
        ("codebook,prune_channels", "pass 'prune_channels' must come before 'codebook': "),
        ("int8,prune_nm", "pass 'prune_nm' must come before 'int8': "),
        ("int4,prune_nm", "pass 'int4' must come after 'prune_nm': "),
        ("float16,prune_channels", "pass 'float16' must come after 'prune_channels': "),
    ],
)
def test_bad_recipes_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(steps=parse_calls(text, "--passes")).passes()


def test_each_occurrence_is_its_own_instance() -> None:
    first, _, second = Recipe(steps=parse_calls("retrain(epochs=3),prune,retrain", "--passes")).passes()
    assert first is not second
    assert first.config.epochs == 3
    assert second.config != first.config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_toml_says_the_same_as_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
gate = "top1 drop <= 0.5%"
target = ["onnx", "tensorrt-rtx(compute=sm89)"]
retrain = "hook.py:train"
seed = 3
[data]
train = "d.npz:train"
preprocess = "scale=1/255"
[[pass]]
name = "prune"
sparsity = 0.9
layers = {"conv*" = 0.5}
[[pass]]
name = "int8"
""",
    )
    recipe = load_recipe(path)
    assert recipe.steps == parse_calls('prune(sparsity=0.9, layers={"conv*": 0.5}), int8', "--passes")
    assert recipe.gates == ("top1 drop <= 0.5%",)
    assert recipe.targets[1] == Call("tensorrt-rtx", {"compute": "sm89"})
    assert recipe.train == str(tmp_path / "d.npz:train")
    assert recipe.retrain == str(tmp_path / "hook.py:train")
    assert recipe.preprocess == "scale=1/255"
    assert recipe.seed == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("gates = []", r"unknown key 'gates'; did you mean 'gate'\?"),
        ("[data]\nevals = 'x'", r"unknown key 'data.evals'; did you mean 'eval'\?"),
        ("seed = '1'", "'seed' takes int"),
        ("gate = 3", "'gate' takes str"),
        ("[[pass]]\nsparsity = 1", r"every \[\[pass\]\] needs a name"),
        ("passes = 'fold'\n[[pass]]\nname = 'fold'", r"both 'passes' and \[\[pass\]\]"),
        ("x = [", "not valid TOML"),
    ],
)
def test_bad_toml_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "recipe.toml" in str(caught.value)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot read the recipe \(No such file"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "path", sorted(MODELS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_recipes_of_the_ready_models_are_right(path: Path) -> None:
    recipe = load_recipe(path)
    assert [instance.name for instance in recipe.passes()] == [step.name for step in recipe.steps]


def test_refuses_a_seed_below_zero() -> None:
    assert Recipe(seed=0).seed == 0
    with pytest.raises(UsageError, match="seed -1: give 0 or more"):
        Recipe(seed=-1)


def test_a_file_of_choices_needs_a_pass_that_takes_it() -> None:
    steps = parse_calls("fold, winograd", "--passes")
    tuned = with_tuning(Recipe(steps=steps), "choices.json")
    assert tuned.steps[1].options["tuning"] == "choices.json"
    assert tuned.steps[0] == steps[0]
    with pytest.raises(
        UsageError, match=r"--tuning choices\.json: no pass of the recipe takes it; add winograd"
    ):
        with_tuning(Recipe(steps=steps[:1]), "choices.json")


def test_a_table_of_layers_needs_names() -> None:
    with pytest.raises(UsageError, match=r"--passes: expected a name, found '=' in: "):
        parse_calls("int8(layer_bits={=: 16})", "--passes")
