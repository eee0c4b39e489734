"""What a search chooses from: the grammar of --search, defaults per layer, allocations, and the recipe it writes."""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.optimizer.judging.evidence import parse_tolerances
from onnx_lathe.optimizer.recipe import Call, Recipe, load_recipe, parse_calls
from onnx_lathe.optimizer.search import layerwise
from onnx_lathe.optimizer.search.clock import parse_budget
from onnx_lathe.optimizer.search.grammar import parse_space
from onnx_lathe.optimizer.search.hull import Exploring, lower_hull
from onnx_lathe.optimizer.search.layerwise import Composer, packed_estimate
from onnx_lathe.optimizer.search.proposals import Option, Proposals, allocations, uniform
from onnx_lathe.optimizer.search.recipe_file import write_recipe
from onnx_lathe.optimizer.search.request import SearchRequest
from onnx_lathe.optimizer.search.space import Dimension, Space
from onnx_lathe.optimizer.search.strengths import SPARSITIES, TRADEOFFS, VALUES, default_space, layers_of
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.numerics.clustering.kmeans import Rule, encode
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.runtime.data import open_source
from onnx_lathe.runtime.data.kept import hold_apart
from onnx_lathe.runtime.files.signature import InputSpec
from tests.support.builders import build, random, run

STEPS = parse_calls("fold, prune(layers={w2: 0}), retrain, codebook, retrain", "passes")
NETWORK = "(float[N, 12] x) => (float[N, 8] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


def weights_of(index: int) -> Sequence[Weight]:
    return layers_of(build(NETWORK, w1=random(12, 48), w2=random(48, 8)), STEPS[index].name, {})


def space(text: str) -> tuple[Dimension, ...]:
    return parse_space([text], STEPS, weights_of)


def test_ranges_choices_and_tables_of_layers() -> None:
    rate, batch, bits, sparsity = space(
        "retrain#2.rate=1e-4..1e-1, retrain#1.batch=32|64, codebook.bits=3..8, prune.sparsity=50%..95%"
    )
    assert (rate.low, rate.high, rate.log, rate.step) == (1e-4, 1e-1, True, 4)
    assert (batch.choices, batch.step) == ((32, 64), 2)
    assert (bits.low, bits.high, bits.whole, bits.log) == (3, 8, True, False)
    assert (sparsity.low, sparsity.high, sparsity.log) == (0.5, 0.95, False)
    first, second = space("prune.layers=0.5..0.7:0.1")
    assert first.levels == pytest.approx((0.5, 0.6, 0.7))
    assert (first.layer, second.layer) == ("w1", "w2")
    (one,) = space("codebook.layers[w2]=2..4")
    assert one.levels == (4, 3, 2)  # the strongest last
    assert space("prune.training.rate=1e-4..1e-3")[0].option == ("training", "rate")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("prunee.sparsity=0.1..0.5", "no step 'prunee'; did you mean 'prune'?"),
        ("int8.method=minmax", "no step 'int8'; its steps are fold"),
        ("prune.sparsty=0.1..0.5", "prune has no option 'sparsty'; did you mean 'sparsity'?"),
        ("prune.rate=1e-4..1e-3", "write prune.training.rate"),
        ("retrain.rate=1e-4..1e-1", "has 2 steps 'retrain'; write retrain#1"),
        ("retrain#3.rate=1e-4..1e-1", "there is no #3"),
        ("prune.sparsity=0.9..0.5", "the range is empty"),
        ("prune.sparsity=0.5..1.5", "must be 0.0 to 1.0, not 1.5"),
        ("prune.sparsity=a..b", "is no range of numbers"),
        ("prune.sparsity", "write it as"),
        ("codebook.bits=3|x", "takes int"),
        ("prune.layers[nosuch]=0.1..0.5", "no weight or layer is named 'nosuch'"),
        ("prune.sparsity[w1]=0.1..0.5", "is no table of layers"),
        ("codebook.bits=3..8, codebook.bits=2|3", "is there twice"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        space(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_layer_has_its_own_strength_but_those_that_the_recipe_settles() -> None:
    model = build(NETWORK, w1=random(12, 48), w2=random(48, 8))
    found = default_space(STEPS, model, packed=True)
    assert [one.name for one in found] == [
        "prune.layers[w1]", "codebook.layer_centroids[w1]", "codebook.layer_centroids[w2]",
        "codebook.layer_tradeoffs[w1]", "codebook.layer_tradeoffs[w2]",
    ]  # fmt: skip
    settings = {one.name: one.levels[-1] for one in found} | {"codebook.layer_centroids[w2]": 0}
    calls = Space(STEPS, found).calls(settings)
    assert calls[1].options["layers"] == {"w2": 0, "w1": 0.95}
    assert calls[3].options == {
        "layer_centroids": {"w1": 3}, "layers": {"w2": 0}, "layer_tradeoffs": {"w1": 0.12, "w2": 0.12},
    }  # fmt: skip
    assert STEPS[1].options["layers"] == {"w2": 0}


@pytest.mark.parametrize(
    "settled, left",
    [
        ({"layer_tradeoffs": {"w1": 0.02}}, ["layer_centroids[w1]", "layer_centroids[w2]", "layer_tradeoffs[w2]"]),
        ({"layer_centroids": {"w1": 16}}, ["layer_centroids[w2]", "layer_tradeoffs[w2]"]),
        ({"tradeoff": 0.02}, ["layer_centroids[w1]", "layer_centroids[w2]", "layer_tradeoffs[w1]", "layer_tradeoffs[w2]"]),
    ],
)  # fmt: skip
def test_a_tradeoff_that_the_recipe_settles_is_not_searched(settled: Any, left: list[str]) -> None:
    model = build(NETWORK, w1=random(12, 48), w2=random(48, 8))
    found = default_space([Call("codebook", settled)], model, packed=True)
    assert [one.name.removeprefix("codebook.") for one in found] == left
    assert all(one.layer for one in default_space([Call("codebook", settled)], model, packed=False))


def test_tradeoffs_of_layers_are_searched_by_their_logarithm() -> None:
    found = space("codebook.layer_tradeoffs[w1]=0.001..0.1")
    assert found[0].levels[::5] == pytest.approx((0.001, 0.01, 0.1))
    assert space("codebook.layer_tradeoffs[w1]=0.01|0.1")[0].levels == (0.01, 0.1)


def test_layers_that_a_pass_splits_have_no_strength_of_their_own_later() -> None:
    steps = parse_calls("svd, codebook", "passes")
    found = default_space(steps, build(NETWORK, w1=random(32, 48), w2=random(48, 32)), packed=False)
    assert [one.layer for one in found] == ["w1", "w2", ""][: len(found)] or found[-1].name == "codebook.bits"
    assert found[-1].name == "codebook.bits"
    found = default_space(
        parse_calls("svd, tucker, svd(energy=0.9)", "passes"), build(NETWORK, w1=random(32, 48), w2=random(48, 32)), packed=False
    )  # fmt: skip
    assert (found[-1].name, found[-1].levels[0]) == ("tucker.macs", 1.0)


def test_an_allocation_is_the_cheapest_for_its_harm() -> None:
    """Against all combinations of three layers with four settings each."""
    generator = np.random.default_rng(0)
    dimensions = tuple(Dimension(f"l{n}", 0, ("layers",), f"l{n}", (0, 1, 2, 3)) for n in range(3))
    table = {
        f"l{n}": [
            Option({f"l{n}": level}, cost, harm)
            for level, cost, harm in zip(
                range(4), sorted(generator.random(4), reverse=True), sorted(generator.random(4)), strict=True
            )
        ]
        for n in range(3)
    }
    found = allocations(Space((), dimensions), table)
    every = [
        (sum(one.harm for one in chosen), sum(one.cost for one in chosen))
        for chosen in itertools.product(*table.values())
    ]
    assert len(found) > 3
    for settings in found:
        own = [next(o for o in table[name] if o.own[name] == level) for name, level in settings.items()]
        harm, cost = sum(one.harm for one in own), sum(one.cost for one in own)
        assert not [1 for h, c in every if h < harm - 1e-12 and c < cost - 1e-12]


def test_from_one_allocation_to_the_next_one_layer_changes() -> None:
    table = {
        name: [Option({name: level}, 4.0**-level, weight * 5.0**level) for level in range(4)]
        for name, weight in (("a", 1.0), ("b", 1.7), ("c", 2.9))
    }
    dimensions = tuple(Dimension(name, 0, ("layers",), name, (0, 1, 2, 3)) for name in table)
    found = allocations(Space((), dimensions), table)
    assert len(found) == 1 + 3 * 3
    for before, after in itertools.pairwise(found):
        assert sum(before[name] != after[name] for name in table) == 1


def test_steps_stay_on_the_hull_of_each_layer() -> None:
    """Of seven settings of each layer the odd ones are beaten by a mixture of their neighbours."""
    table = {
        name: [Option({name: level}, 8.0 - level + (level % 2) * 2, 2.0**level) for level in range(7)]
        for name in "abcd"
    }
    dimensions = tuple(Dimension(name, 0, ("layers",), name, tuple(range(7))) for name in table)
    proposals = Proposals(Space((), dimensions), table, 0)
    best = dict.fromkeys("abcd", 2)
    for _ in range(30):
        moved = proposals.step(best)
        assert moved != best
        assert all(level in (0, 2, 4, 6) for level in moved.values())


def test_few_looks_find_the_hull() -> None:
    """Of sparsities, numbers of values and tradeoffs of Laplacian weights."""
    weights = np.random.default_rng(0).laplace(size=800).astype(np.float32)
    ladders = (SPARSITIES[::2], VALUES[1:], TRADEOFFS)
    sizes = tuple(map(len, ladders))

    @cache
    def figures(place: tuple[int, ...]) -> tuple[float, float]:
        sparsity, count, tradeoff = (ladder[at] for ladder, at in zip(ladders, place, strict=True))
        kept = np.where(np.abs(weights) >= np.quantile(np.abs(weights), sparsity), weights, np.float32(0))
        found = encode([kept], int(count), Rule(tradeoff=float(tradeoff)), keep_zero=sparsity > 0)
        values = found.centroids[found.indices[0]]
        return packed_estimate(values), float(np.square(values - weights).sum())

    exploring = Exploring(sizes, {1, 2})
    while (place := exploring.next()) is not None:
        assert place not in exploring.found
        exploring.add(place, *figures(place))
    every = [figures(place) for place in itertools.product(*map(range, sizes))]
    assert len(exploring.found) < len(every) / 3
    bits = len(weights) / 8
    for price in np.geomspace(0.1, 20, 20):
        best = min(cost + price * harm for cost, harm in every)
        near = min(cost + price * harm for cost, harm in exploring.found.values())
        assert near <= best + 0.05 * bits


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_has_the_best_for_every_price(seed: int) -> None:
    points = [(float(c), float(h)) for c, h in np.random.default_rng(seed).integers(0, 12, (40, 2))]
    hull = [points[index] for index in lower_hull(points)]
    assert hull == sorted(set(hull), reverse=True)
    for price in np.geomspace(0.01, 100, 60):
        best = min(cost + price * harm for cost, harm in points)
        assert min(cost + price * harm for cost, harm in hull) == pytest.approx(best)
    slopes = [(b[1] - a[1]) / (a[0] - b[0]) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    assert len(set(slopes)) == len(slopes)
    assert lower_hull([]) == []


def test_one_run_serves_every_layer_of_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(NETWORK, w1=random(12, 48), w2=random(48, 8))
    steps = parse_calls("prune, codebook", "passes")
    whole = Space(steps, default_space(steps, model, packed=True))
    composer = Composer.of(model, whole)
    assert composer is not None
    runs: list[str] = []
    applied = layerwise.apply_pass
    monkeypatch.setattr(
        layerwise, "apply_pass", lambda one, *rest: (runs.append(one.name), applied(one, *rest))[1]
    )
    settings = {one.name: one.levels[2 + number % 4] for number, one in enumerate(whole.dimensions)}
    made = composer.candidate(settings)
    composer.packed_bytes(settings)
    assert runs == ["prune", "codebook"]
    by_itself = model
    for step in whole.calls(settings):
        options = {**step.options, **({"clean": False} if step.name == "prune" else {})}
        by_itself, _ = applied(configure(find(step.name), options), by_itself, Context())
    x = random(5, 12)
    np.testing.assert_allclose(run(made, {"x": x})["y"], run(by_itself, {"x": x})["y"], rtol=1e-6, atol=1e-6)


def test_biases_that_a_pass_rounds_are_rounded_in_every_candidate() -> None:
    network = "(float[N, 12] x) => (float[N, 48] y) { h = MatMul (x, w1)  y = Add (h, b) }"
    model = build(network, w1=random(12, 48), b=random(48))
    steps = parse_calls("codebook(mantissa=3, biases=8)", "passes")
    whole = Space(steps, default_space(steps, model, packed=True))
    composer = Composer.of(model, whole)
    assert composer is not None
    assert Composer.of(model, whole, alone=True) is None
    for place in (0, 3, 5):  # the first leaves the layer, and its bias, as they are
        made = composer.candidate({one.name: one.levels[place] for one in whole.dimensions})
        values = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
        original = onnx.numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == "b"))
        assert (values["b"] == (round_mantissa(original, 3) if place else original)).all()


def test_the_boundary_is_found_by_halving() -> None:
    dimension = Dimension("a", 0, ("layers",), "w", tuple(range(40)))
    options = [Option({"a": level}, 1.0 / (1 + level), 4.0**level) for level in range(40)]
    proposals = Proposals(Space(parse_calls("prune", "p"), (dimension,)), {"w": options}, 0)
    tried: dict[str, bool] = {}
    for _ in range(20):
        settings = proposals.between(tried)
        if settings is None:
            break
        tried[repr(sorted(settings.items()))] = int(settings["a"]) <= 17  # type: ignore[arg-type]
    assert len(tried) <= 7
    assert tried["[('a', 17)]"]
    assert tried["[('a', 18)]"] is False


def test_a_step_from_the_best_is_cheaper() -> None:
    dimensions = tuple(Dimension(f"l{n}", 0, ("layers",), f"l{n}", tuple(range(9))) for n in range(4))
    table = {
        one.name: [Option({one.name: level}, 9.0 - level, 1.2**level) for level in range(9)]
        for one in dimensions
    }
    proposals = Proposals(Space(parse_calls("prune", "p"), dimensions), table, 0)
    best = {one.name: 4 for one in dimensions}
    for _ in range(20):
        moved = proposals.step(best)
        assert sum(int(level) for level in moved.values()) > 16  # type: ignore[arg-type]


def test_uniform_settings_are_tried_too() -> None:
    dimensions = tuple(Dimension(f"l{n}", 0, ("layers",), f"l{n}", (0, 1, 2, 3, 4, 5)) for n in range(3))
    found = uniform(Space(parse_calls("prune", "p"), dimensions))
    assert [set(one.values()) for one in found] == [{1}, {2}, {3}, {4}]


@pytest.mark.parametrize(
    "values, bits, table", [([0.0] * 8, 0.0, 9), ([0.0, 1.0] * 64, 1.0, 9), ([1.5, 1.0078125] * 64, 1.0, 16), ([0.1, 0.2] * 64, 1.0, 32)]
)  # fmt: skip
def test_the_estimate_is_the_entropy_and_the_table(values: list[float], bits: float, table: int) -> None:
    array = np.float32(values)
    assert packed_estimate(array) == (bits * array.size + table * np.unique(array).size) / 8


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    passes = 'fold, prune(sparsity=0.1, layers={"a b.w[0]": 0.30000000000000004, c: 0, d: 1e-07, e: 0.5}), '
    passes += "retrain(rate=0.0012345, batch=32), codebook(layer_centroids={x: 12}, method=exact)"
    recipe = Recipe(
        parse_calls(passes, "p"), ("top1 drop <= 0.5%",), parse_calls("ort, pack(effort=fast)", "t"), data="d/data.npz:part",
        eval=str(tmp_path / "eval.npz"), preprocess='scale=1/255', seed=3, memory=1 << 20,
    )  # fmt: skip
    (tmp_path / "deep").mkdir()
    assert write_recipe(tmp_path / "deep" / "recipe.toml", recipe, ["found"]) == []
    again = load_recipe(tmp_path / "deep" / "recipe.toml")
    assert again.steps == recipe.steps
    assert (again.gates, again.targets, again.seed, again.memory) == (
        recipe.gates, recipe.targets, recipe.seed, recipe.memory,
    )  # fmt: skip
    assert Path(str(again.data)).resolve() == Path("d/data.npz:part").resolve()


def test_a_written_recipe_judges_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [
        "0.1%",
        "sqnr=0.5dB",
        "size=1.5MB",
        "size=0.1x",
        "cosine=0.01",
        "macs=3",
        "latency=2ms",
        "mine=0.25",
    ]
    recipe = Recipe(
        parse_calls("fold", "p"), ("mine >= 1", "cer <= 1%"), confidence=0.955, tolerances=parse_tolerances(texts),
        metrics={"mine": "own.py:mine"}, postprocess="own.py:decode", symbols="symbols.txt", eval="data.npz",
    )  # fmt: skip
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "recipe.toml"
    assert write_recipe(path, recipe, ["found"]) == []
    again = load_recipe(path)
    assert (again.confidence, again.tolerances) == (recipe.confidence, recipe.tolerances)
    assert again.metrics == {"mine": str(tmp_path / "own.py:mine")}
    assert again.postprocess == str(tmp_path / "own.py:decode")
    assert again.symbols == str(tmp_path / "symbols.txt")
    in_memory = Recipe(metrics={"a": len, "b": "own.py:b"}, postprocess=list)
    assert write_recipe(path, in_memory, []) == ["metric", "postprocess"]
    assert load_recipe(path).metrics == {"b": str(tmp_path / "own.py:b")}


@pytest.mark.parametrize(
    "gate, metric", [("mine >= 1", "mine"), ("f1 drop <= 1%", "f1"), ("memory <= 1GB", "memory")]
)
def test_what_no_trial_measures_is_refused(gate: str, metric: str) -> None:
    recipe = Recipe(parse_calls("fold", "p"), ("top1 drop <= 1%", gate), metrics={"mine": "own.py:mine"})
    with pytest.raises(UsageError, match=f"a trial does not measure {metric}; search under gates on top1, "):
        SearchRequest(Path("model.onnx"), recipe, Path("out")).check()


@pytest.mark.parametrize(
    "text, seconds", [("30m", 1800), ("1h30m", 5400), ("90", 90), ("0.5h", 1800), ("45 s", 45)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 days", "-3m", "0s", "3m4"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(UsageError, match="give a time such as"):
        parse_budget(text)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", [True, False])
def test_what_judges_neither_trains_nor_calibrates(training: bool, function: bool) -> None:
    values = np.arange(1000, dtype=np.float32)[:, None]
    inputs = [InputSpec("x", np.dtype(np.float32), (None, 1))]
    spec = (
        (lambda: iter([{"x": values[at : at + 64]} for at in range(0, 1000, 64)]))
        if function
        else {"x": values}
    )
    source = open_source(spec, inputs)
    judging, others, _ = hold_apart(source, 150, 100, training, 0)
    judged, seen = (
        np.concatenate([batch.inputs["x"] for batch in one.batches(32)]).ravel() for one in (judging, others)
    )
    assert judging.count == judged.size == 150
    assert not set(judged) & set(seen)
    assert len(seen) >= (700 if training else 100)
    with pytest.raises(DataError, match="too few"):
        hold_apart(open_source({"x": values[:3]}, inputs), 10, 10, training, 0)
