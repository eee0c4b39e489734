"""`optimize init`: the recipe that it writes fits the model and the data, and runs as it is."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from tests.support.builders import build, random
from tests.support.command import refused

TWO_OUTPUTS = """(float[N,3,H,W] image) => (float[N,8,H,W] map, float[N,6] scores) {
    map = Conv<pads=[1,1,1,1]>(image, w1) r = Relu(map) d = Conv<group=8, pads=[1,1,1,1]>(r, w2)
    p = GlobalAveragePool(d) f = Flatten(p) scores = MatMul(f, w3)
}"""
ONE_OUTPUT = "(float[N,16] x) => (float[N,6] scores) { scores = MatMul(x, w) }"
NO_LAYERS = "(float[N,16] x) => (float[N,16] y) { a = Relu(x) y = Tanh(a) }"
RECURRENT = """(float[T,N,16] x) => (float[T,1,N,32] y) {
    y = LSTM<hidden_size=32>(x, w, r)
}"""
INTEGERS = "(float[N,3,8,8] image) => (int64[N,8,8] y) { c = Conv<pads=[1,1,1,1]>(image, w) y = ArgMax<axis=1, keepdims=0>(c) }"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def several_outputs() -> None:
    model = build(TWO_OUTPUTS, w1=random(8, 3, 3, 3), w2=random(8, 1, 3, 3), w3=random(8, 6))
    onnx.save(model, "model.onnx")
    np.savez("data.npz", image=random(40, 3, 12, 12))


def proposed(*arguments: str) -> str:
    """The text of the recipe that is written for model.onnx, after it has run as it is."""
    assert main(["init", "model.onnx", *arguments, "--quiet"]) == 0
    assert main(["model.onnx", "--recipe", "recipe.toml", "--no-latency", "--quiet"]) == 0
    return Path("recipe.toml").read_text(encoding="utf-8")


def active(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def passes() -> list[str]:
    return [str(step) for step in load_recipe(Path("recipe.toml")).steps]


def test_several_outputs_of_open_shapes_are_judged_by_all_of_them() -> None:
    several_outputs()
    text = proposed("--data", "data.npz")
    assert passes() == ["fold", "equalize", "int8"]
    assert 'gate = ["sqnr >= 15"]' in active(text)
    assert load_recipe(Path("recipe.toml")).targets[0].name == "ort"
    assert "stay in float" not in text
    assert "agreement >= 98%" not in [line for line in text.splitlines() if line.startswith("gate")]
    assert "# output map FLOAT, Nx8xHxW" in text


def test_top1_of_one_output_does_not_stand_for_the_others() -> None:
    several_outputs()
    np.savez("data.npz", image=random(1000, 3, 12, 12), labels=np.arange(1000) % 6)
    assert main(["init", "model.onnx", "--data", "data.npz", "--quiet"]) == 0
    assert load_recipe(Path("recipe.toml")).gates == ("top1 drop <= 1%", "sqnr >= 15")


@pytest.mark.parametrize("samples, gate", [(40, "sqnr >= 15"), (1000, "agreement >= 98%")])
def test_few_samples_are_not_judged_by_the_share_of_equal_answers(samples: int, gate: str) -> None:
    onnx.save(build(ONE_OUTPUT, w=random(16, 6)), "model.onnx")
    np.savez("data.npz", x=random(samples, 16))
    assert main(["init", "model.onnx", "--data", "data.npz", "--quiet"]) == 0
    assert load_recipe(Path("recipe.toml")).gates == (gate,)
    text = Path("recipe.toml").read_text(encoding="utf-8")
    told = '8 evaluation samples: one is 12 points. With some hundreds: gate = ["agreement >= 98%"]'
    assert (told in text) == (samples == 40)


def test_without_data_nothing_is_needed_and_nothing_promised() -> None:
    several_outputs()
    text = proposed()
    assert passes() == ["fold", "int8(activations=false)"]
    assert not [line for line in active(text) if line.startswith(("gate", "data", "[data]"))]
    assert load_recipe(Path("recipe.toml")).targets[0].name == "onnx"


def test_labels_give_a_gate_on_top1_and_the_number_of_samples(lenet5: Path, small_mnist: Path) -> None:
    Path("model.onnx").write_bytes(lenet5.read_bytes())
    (Path("recipes")).mkdir()
    data = ["--train", f"{small_mnist}:train", "--eval", f"{small_mnist}:test", "--preprocess", "scale=1/255"]
    assert main(["init", "model.onnx", *data, "--out", "recipes/mine.toml", "--quiet"]) == 0
    recipe = load_recipe(Path("recipes/mine.toml"))
    assert recipe.gates == ("top1 drop <= 1%",)
    assert recipe.preprocess == "scale=1/255"
    text = Path("recipes/mine.toml").read_text(encoding="utf-8")
    assert "learns from labels" in " ".join(text.replace("#", " ").split())
    assert main(["model.onnx", "--recipe", "recipes/mine.toml", "--no-latency", "--quiet"]) == 0


def test_paths_are_written_from_the_recipes_folder() -> None:
    several_outputs()
    Path("recipes").mkdir()
    assert main(["init", "model.onnx", "--data", "data.npz", "--out", "recipes/a.toml", "--quiet"]) == 0
    assert 'data = "../data.npz"' in Path("recipes/a.toml").read_text(encoding="utf-8")
    assert load_recipe(Path("recipes/a.toml")).data == "data.npz"


def test_a_model_without_layers_is_only_folded() -> None:
    onnx.save(build(NO_LAYERS), "model.onnx")
    np.savez("data.npz", x=random(30, 16))
    assert "No layer holds a weight that could be made smaller" in proposed("--data", "data.npz")
    assert passes() == ["fold"]


def test_recurrent_layers_are_stored_in_8_bits() -> None:
    onnx.save(build(RECURRENT, w=random(1, 128, 16), r=random(1, 128, 32)), "model.onnx")
    text = proposed()
    assert passes() == ["fold", "int8(activations=false)"]
    assert "a recurrent layer stays float (LSTM_0)" in text


def test_a_model_that_comes_quantized_is_left_so() -> None:
    several_outputs()
    quantized = onnx_lathe.rewrite("model.onnx", "fold, int8", calibration="data.npz", targets="ort")
    onnx.save(quantized, "model.onnx")
    text = proposed("--data", "data.npz")
    assert passes() == ["fold"]
    assert '# existing = "strip"' in text


def test_outputs_of_integers_are_judged_by_agreement() -> None:
    onnx.save(build(INTEGERS, w=random(8, 3, 3, 3)), "model.onnx")
    np.savez("data.npz", image=random(40, 3, 8, 8))
    assert main(["init", "model.onnx", "--data", "data.npz", "--quiet"]) == 0
    assert load_recipe(Path("recipe.toml")).gates == ("agreement >= 98%",)


@pytest.mark.parametrize(
    "target, steps, arguments",
    [
        ("pack", ["fold", "codebook(min_sqnr=20)"], ["--data", "data.npz"]),
        ("jetson(device=orin-nano-8gb)", ["fold", "equalize", "int8"], ["--data", "data.npz"]),
        ("jetson", ["fold", "float16"], []),
    ],
)
def test_it_fits_the_target(target: str, steps: list[str], arguments: list[str]) -> None:
    several_outputs()
    text = proposed("--target", target, *arguments)
    assert passes() == steps
    left = (
        "2 layers run so and 1 stay in float" in text
        and "#   1: a depthwise convolution stays float (Conv_2)" in text
    )
    assert left == ("int8" in steps)
    assert [str(call) for call in load_recipe(Path("recipe.toml")).targets] == [target]


def proposals(text: str) -> list[str]:
    """The passes that the recipe holds as comments, each with its options, those behind `# #` too."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        bare = line.removeprefix("# ").removeprefix("# ")
        if line.startswith("# ") and bare == "[[pass]]":
            found.append([bare])
        inside = line.startswith("# ") and (inside or bare == "[[pass]]")
        if inside and re.match(r"\w+ = ", bare):
            found[-1].append(bare)
    return ["\n".join(one) for one in found]


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--data", "data.npz"], ["tucker", "refit", "retrain"]),
        (["--data", "data.npz", "--target", "pack"], ["codebook", "prune", "prune", "codebook"]),
        ([], ["int4"]),
    ],
)
def test_what_it_proposes_besides_can_be_taken_as_it_is(arguments: list[str], names: list[str]) -> None:
    """Every step and hint that is a comment is one that the passes take."""
    several_outputs()
    assert main(["init", "model.onnx", *arguments, "--quiet"]) == 0
    proposed = proposals(Path("recipe.toml").read_text(encoding="utf-8"))
    Path("other.toml").write_text("\n".join(proposed), encoding="utf-8")
    steps = load_recipe(Path("other.toml")).steps
    assert [step.name for step in steps] == names
    for step in steps:
        configure(find(step.name), step.options)


def test_a_file_that_is_there_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    several_outputs()
    Path("recipe.toml").write_text("mine", encoding="utf-8")
    assert "recipe.toml: is there already; --force overwrites it" in refused(capsys, ["init", "model.onnx"])
    assert Path("recipe.toml").read_text(encoding="utf-8") == "mine"
    assert main(["init", "model.onnx", "--force", "--quiet"]) == 0
    assert load_recipe(Path("recipe.toml")).steps


@pytest.mark.parametrize(
    "out", ["model.onnx", "./data.npz", "train.npz", "own.py", "classes.txt", "link.toml"]
)
def test_what_is_read_is_never_overwritten(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    several_outputs()
    Path("train.npz").write_bytes(Path("data.npz").read_bytes())
    for file in ("own.py", "classes.txt"):
        Path(file).write_text("kept", encoding="utf-8")
    Path("link.toml").hardlink_to("data.npz")
    before = Path(out).read_bytes()
    data = [
        "--data",
        "data.npz",
        "--train",
        "train.npz:train",
        "--eval",
        "own.py:f",
        "--classes",
        "classes.txt",
    ]
    line = refused(capsys, ["init", "model.onnx", *data, "--force", "--out", out])
    assert "is read here as" in line
    assert Path(out).read_bytes() == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["none.onnx"], "none.onnx"),
        (["model.onnx", "--target", "phone"], "phone"),
        (["model.onnx", "--data", "none.npz"], "none.npz: no such file"),
        (["model.onnx", "--data", "other.npz"], "other.npz: has no array 'image'"),
        (["model.onnx", "--out", "none/recipe.toml"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_read_leaves_no_recipe(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    several_outputs()
    np.savez("other.npz", pictures=random(40, 3, 12, 12))
    assert said in refused(capsys, ["init", *arguments])
    assert not list(Path().rglob("*.toml"))


def test_names_of_a_model_cannot_leave_their_comment() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = LSTMCell(x) }".replace("LSTMCell", "Relu"))
    model.graph.input[0].name = model.graph.node[0].input[0] = 'x"\ngate = ["top1 >= 100%"]\n'
    onnx.save(model, "model.onnx")
    text = proposed()
    assert not [line for line in active(text) if "top1" in line]


def test_json_and_python_say_what_the_recipe_follows_from(capsys: pytest.CaptureFixture[str]) -> None:
    several_outputs()
    assert main(["init", "model.onnx", "--data", "data.npz", "--target", "jetson", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == Path("recipe.toml").read_text(encoding="utf-8")
    assert found["command"] == "optimize model.onnx --recipe recipe.toml"
    assert found["int8_layers"] == ["Conv_0", "MatMul_5"]
    assert [layer["node"] for layer in found["float_layers"]] == ["Conv_2"]
    made = onnx_lathe.init("model.onnx", data="data.npz", targets="jetson", out="again.toml")
    assert made.text.replace("again.toml", "recipe.toml") == found["text"]
