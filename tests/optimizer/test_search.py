"""`optimize search`: settings per layer under a gate, on LeNet-5; what it writes, and how it ends."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.recipe import load_recipe, parse_calls
from onnx_lathe.optimizer.search import bench as benches
from onnx_lathe.optimizer.search import clock as clocks
from onnx_lathe.optimizer.search import loop as loops
from onnx_lathe.optimizer.search import table as tables
from onnx_lathe.optimizer.search.bench import Bench, Outcome
from onnx_lathe.optimizer.search.clock import Clock, OutOfTimeError
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.loop import Loop
from onnx_lathe.optimizer.search.space import Dimension, Settings, Space
from onnx_lathe.optimizer.search.storage import Shared, open_storage
from onnx_lathe.optimizer.search.untrained import RULED_OUT, Failures, looks_first, without_training
from tests.support.command import refused
from tests.support.data import keyboard_interrupt_at

pytest.importorskip("optuna")
PASSES = "fold, prune, codebook"
GATE = "top1 drop <= 12%"


def arguments(
    model: Path, data: Path, out: Path, *more: str, gate: str = GATE, passes: str = PASSES
) -> list[str]:
    return [
        "search", str(model), "--passes", passes, "--gate", gate, "--train", f"{data}:train", "--eval", f"{data}:test",
        "--preprocess", "scale=1/255", "--budget", "2h", "--trials", "30", "--subset", "60", "--margin", "2", "--threads", "1", "--out", str(out), "--quiet", *more,
    ]  # fmt: skip


def found(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "search.json").read_text())
    return record


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """A short look at sensitivity: with the number of trials, and not a time, it says what a search comes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "RUNS", 20)
        yield


@pytest.fixture(scope="module")
def lenet(lenet5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With few hidden units, so that trials are quick."""
    path = tmp_path_factory.mktemp("lenet") / "lenet.onnx"
    onnx.save(onnx_lathe.rewrite(lenet5, 'prune_channels(sparsity=0.9, layers={"conv*": 0})'), path)
    return path


@pytest.fixture(scope="module")
def searched(lenet: Path, small_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    assert main(arguments(lenet, small_mnist, out)) == 0
    return out


def test_it_finds_something_smaller_per_layer(searched: Path) -> None:
    record = found(searched)
    assert record["outcome"] == "done"
    assert record["winner"]["passed"]
    assert record["winner"]["ratio"] < 0.07  # 4 bits throughout give more than 0.12
    assert len(set(record["winner"]["settings"]["codebook.layer_centroids"].values())) > 1
    assert any(record["winner"]["settings"]["codebook.layer_tradeoffs"].values())
    assert "150 of the training samples" in record["chosen_on"]
    assert record["final"]["gates"][0]["passed"]
    assert any(trial["stopped"] for trial in record["trials"])


def test_the_recipe_gives_the_same_figures_again(searched: Path, lenet: Path, tmp_path: Path) -> None:
    record = found(searched)
    assert record["reproduce"].startswith(f"optimize {lenet} --recipe")
    run = onnx_lathe.optimize(lenet, recipe=record["recipe"], out=tmp_path / "again", latency=False)
    assert run.final()["top1"] == record["final"]["metrics"]["top1"]
    best = onnx.load(searched / "best" / "model.onnx")
    assert onnx.load(tmp_path / "again" / "model.onnx").graph == best.graph


def test_the_packed_size_is_that_of_the_file(searched: Path, tmp_path: Path) -> None:
    sizes = onnx_lathe.pack(searched / "best" / "model.onnx", tmp_path / "packed.lathe")
    assert found(searched)["winner"]["value"] == pytest.approx(sizes.packed, rel=0.02)


def test_the_front_falls_in_both_directions(searched: Path) -> None:
    record = found(searched)
    front = record["front"]
    winner = record["winner"]
    assert {"settings": winner["settings"], "value": winner["value"]} in [
        {"settings": one["settings"], "value": one["value"]} for one in front
    ]
    assert [one["value"] for one in front] == sorted(one["value"] for one in front)
    quality = [one["metrics"][record["quality"]] for one in front]
    assert quality == sorted(quality)


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped(
    searched: Path, lenet: Path, small_mnist: Path, capsys: Any
) -> None:
    line = refused(capsys, arguments(lenet, small_mnist, searched))
    assert "--resume goes on with it, --force erases it" in line
    before = len(found(searched)["trials"])
    more = arguments(lenet, small_mnist, searched, "--resume", "--trials", str(before + 5))
    assert main(more) == 0
    assert len(found(searched)["trials"]) == before + 5


def test_no_setting_passes(
    lenet: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = arguments(lenet, small_mnist, tmp_path / "out", "--trials", "6", gate="sqnr >= 200")
    assert main(impossible) == 3
    said = capsys.readouterr().out
    assert "nearest miss" in said
    assert "no trial passes the gate" in said
    record = found(tmp_path / "out")
    assert record["winner"] is None
    assert record["nearest_miss"]["metrics"]["sqnr"] == max(trial["quality"] for trial in record["trials"])
    assert not (tmp_path / "out" / "recipe.toml").exists()


def test_an_interruption_keeps_the_best(
    lenet: Path,
    small_mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Bench, "try_out", keyboard_interrupt_at(15, Bench.try_out))
    assert main(arguments(lenet, small_mnist, tmp_path / "out")) == 130
    record = found(tmp_path / "out")
    assert record["outcome"] == "interrupted"
    assert record["winner"]["passed"]
    assert not record["final"]
    assert "not yet judged on evaluation data" in capsys.readouterr().out
    assert load_recipe(tmp_path / "out" / "recipe.toml").steps[1].name == "prune"


class Time:
    """Goes on when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    perf_counter = time


class Slow:
    """A bench whose trials take their time."""

    def __init__(self, clock: Clock, seconds: float, time: Time) -> None:
        self.clock, self.seconds, self.best, self.time = clock, seconds, 1.0, time
        self.space = Space((), (Dimension("x", 0, ("x",), low=0.0, high=1.0),))
        self.goal, self.tried = Goal("packed", (), 1.0), 0

    def try_out(self, settings: Settings) -> Outcome:
        hear, ends = self.clock.watched(lambda text: None), self.time.now + self.seconds
        while self.time.now < ends:
            hear("training")
            self.time.now += 0.005
        self.tried += 1
        return Outcome(0.5, {}, True, 0.0, 1, True)


@pytest.mark.parametrize("seconds, most", [(0.1, 10), (30.0, 0)])
def test_the_budget_is_kept(
    seconds: float, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that would not end in time is not begun, and one that takes longer than thought is cut off."""
    time = Time()
    for module in (clocks, loops):
        monkeypatch.setattr(module, "time", time)
    bench = Slow(Clock(1.2), seconds, time)
    shared = Shared.open(open_storage(f"journal:{tmp_path / 'journal'}"), "budget", bench.space, 0)
    with contextlib.suppress(OutOfTimeError):
        Loop(bench, shared, {}, 0).run()  # type: ignore[arg-type]
    assert time.now < 1.21
    assert min(most, 1) <= bench.tried <= most
    assert len(shared.finished()) == bench.tried


@pytest.mark.slow
def test_hyper_parameters_of_a_training(
    lenet: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "out"
    asked = arguments(
        lenet, small_mnist, out, "--search", "retrain.rate=1e-4..1e-1, retrain.batch=32|64", "--trials", "3",
        gate="top1 drop <= 30%", passes="fold, prune(sparsity=0.5), retrain(epochs=1)",
    )  # fmt: skip
    assert main(asked) == 0
    record = found(out)
    assert 1e-4 <= record["winner"]["settings"]["retrain.rate"] <= 1e-1
    assert record["winner"]["settings"]["retrain.batch"] in (32, 64)
    step = load_recipe(out / "recipe.toml").steps[2]
    assert step.options["rate"] == record["winner"]["settings"]["retrain.rate"]


def test_evaluation_data_chooses_nothing(lenet: Path, small_mnist: Path, tmp_path: Path, capsys: Any) -> None:
    asked = arguments(lenet, small_mnist, tmp_path / "out")
    place = asked.index("--train")
    line = refused(capsys, asked[:place] + asked[place + 2 :])
    assert "never on evaluation data" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--gate", "size ratio >= 2"], "no gate is about accuracy"),
        (["--minimize", "time"], "--minimize time: give one of size, latency, macs, packed"),
        (["--budget", "soon"], "give a time such as 90s"),
        (["--passes", "fold"], "no pass of the recipe has a strength per layer"),
        (["--storage", "redis"], "write journal:FILE, or a URL"),
        (["--jobs", "0"], "give 1 or more"),
        (["--search", "prunee.sparsity=0.1..0.5"], "did you mean 'prune'?"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    more: list[str], said: str, lenet: Path, small_mnist: Path, tmp_path: Path, capsys: Any
) -> None:
    asked = arguments(lenet, small_mnist, tmp_path / "out")
    for name in more[::2]:
        if name in asked:
            place = asked.index(name)
            del asked[place : place + 2]
    assert said in refused(capsys, [*asked, *more])


def test_without_optuna_it_says_what_to_install(
    lenet: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "onnx-lathe[search]"' in refused(
        capsys, arguments(lenet, small_mnist, tmp_path / "out")
    )


def test_as_a_function(lenet: Path, small_mnist: Path, tmp_path: Path) -> None:
    record = onnx_lathe.search(
        onnx.load(lenet), PASSES, "top1 drop <= 20%", train=f"{small_mnist}:train", eval=f"{small_mnist}:test", preprocess="scale=1/255",
        budget="2h", trials=8, out=tmp_path / "out", threads=1,
    )  # fmt: skip
    assert record.exit_code == 0
    assert record.winner is not None
    with pytest.raises(UsageError, match="a search needs a gate"):
        onnx_lathe.search(lenet, PASSES, (), data=str(small_mnist), out=tmp_path / "other")


class Steady:
    """A judge of always the same accuracy, far below the original's."""

    def __init__(self, top1: float, looks: list[str] | None = None, name: str = "") -> None:
        self.base: Mapping[str, float] = {"top1": 0.9}
        self.top1, self.looks, self.name = top1, looks, name

    def measure(self, model: object) -> benches.Measured:
        if self.looks is not None:
            self.looks.append(self.name)
        return benches.Measured({"top1": self.top1}, {"top1": 0.03})


class Sized:
    """Costs of a candidate that is always as large."""

    def __init__(self, size: float) -> None:
        self.size = size

    def base(self, name: str) -> float:
        return 100.0

    def of(self, model: object, names: object) -> dict[str, float]:
        return {"packed": self.size}


def test_a_hopeless_trial_is_not_measured_further() -> None:
    """By the first of three sets of samples a gate is missed by more than chance; the others are not looked at."""
    looks: list[str] = []
    goal = Goal("packed", parse_gates(["top1 drop <= 1%"]), 1.0)
    judges = [Steady(0.5, looks, name) for name in ("first", "second", "last")]
    bench = Bench(Space((), ()), goal, onnx.ModelProto(), 0, judges, Sized(10.0), None, Clock(1e12), print)  # type: ignore[arg-type]
    outcome = bench.try_out({})
    assert looks == ["first"]
    assert outcome.stopped == "misses a gate by more than chance"
    assert outcome.value > 1.0


def test_what_is_more_drastic_than_a_failure_is_not_trained() -> None:
    failures = Failures()
    failures.add(0.5, 0.2)
    assert failures.rules_out(0.5, 0.2)
    assert failures.rules_out(0.4, 0.3)
    assert not failures.rules_out(0.6, 0.3)
    assert not failures.rules_out(0.4, 0.1)
    steps = parse_calls("prune(sparsity=0.5, rounds=3, training={epochs: 1}), retrain, codebook", "passes")
    assert [str(step) for step in without_training(steps)] == ["prune(sparsity=0.5)", "codebook"]
    sparsity, rate = (
        Dimension(name, step, tuple(name.split(".")[1:]), low=0.1, high=0.5)
        for name, step in (("prune.sparsity", 0), ("retrain.rate", 1))
    )
    assert looks_first(steps, [sparsity])
    assert not looks_first(steps, [sparsity, rate])
    assert not looks_first(steps[2:], [])


def test_a_first_look_saves_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second setting is smaller and noisier than the first, which failed after its training."""
    trained: list[Settings] = []
    dimension = Dimension("prune.sparsity", 0, ("sparsity",), choices=(0.9, 0.99))
    steps = parse_calls("prune, retrain", "passes")
    bench = Bench(
        Space(steps, (dimension,)), Goal("packed", parse_gates(["top1 drop <= 1%"]), 1.0), onnx.ModelProto(), 0,
        [Steady(0.5)], Sized(10.0), None, Clock(1e12), print,
    )  # type: ignore[arg-type, list-item]  # fmt: skip

    def candidate(settings: Settings, trained_too: bool = True, **named: bool) -> onnx.ModelProto:
        if named.get("trained", trained_too):
            trained.append(settings)
        return onnx.ModelProto()

    monkeypatch.setattr(bench, "candidate", candidate)
    assert not bench.try_out({"prune.sparsity": 0.9}).stopped
    assert bench.try_out({"prune.sparsity": 0.99}).stopped == RULED_OUT
    assert trained == [{"prune.sparsity": 0.9}]
