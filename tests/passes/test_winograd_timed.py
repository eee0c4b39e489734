"""by=time: which differences of times count, what the whole network has to say, and who is asked to time."""

import builtins
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.kernel_times import kernel_timer
from onnx_lathe.optimizer.services import Roles, check_needs
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.student import quantile, tail
from onnx_lathe.passes.winograd.timing import LEVEL, Comparison, compare, fastest, tells
from onnx_lathe.passes.winograd.winograd import Winograd
from onnx_lathe.runtime.targets.ncnn import timing
from tests.support.builders import build, random

Recipe: Any = __import__("onnx_lathe.optimizer.recipe", fromlist=["Recipe"]).Recipe


class Clock:
    """A timer that says: each algorithm's milliseconds by layer, with noise of rounds and of loads, and the ratio of the
    whole network.
    """

    def __init__(
        self,
        times: Mapping[str, Mapping[str, float]],
        noise: float = 0.0,
        apart: float = 0.0,
        whole: float = 0.9,
        loads: float = 0.0,
    ) -> None:
        self.times, self.noise, self.apart, self.ratio, self.loads = times, noise, apart, whole, loads
        self.asked: list[tuple[str, Sequence[Mapping[str, str]]]] = []

    def layers(
        self, model: onnx.ModelProto, profile: str, variants: Sequence[Mapping[str, str]]
    ) -> dict[str, np.ndarray]:
        self.asked.append(("layers", variants))
        return {
            name: self._rounds([known[one[name]] for one in variants]) for name, known in self.times.items()
        }

    def whole(
        self, model: onnx.ModelProto, profile: str, variants: Sequence[Mapping[str, str]]
    ) -> np.ndarray:
        self.asked.append(("whole", variants))
        return self._rounds([10.0, 10.0, 10.0 * self.ratio])

    def _rounds(self, means: Sequence[float]) -> np.ndarray:
        found = np.array(means) * drawn(np.random.default_rng(0), len(means), self.loads, self.noise)
        found[..., 1] *= 1 + self.apart
        return found


def drawn(generator: np.random.Generator, variants: int, loads: float, noise: float) -> np.ndarray:
    """Factors [loads, rounds, variants] that have the load in common."""
    load = loads * generator.standard_normal((timing.LOADS, 1, variants))
    return np.exp(load + noise * generator.standard_normal((timing.LOADS, 20, variants)))


SMALL = "(float[1, 128, 7, 7] x) => (float[1, 128, P, Q] y) { [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
MODEL = build(SMALL, w=random(128, 128, 3, 3))


def chosen(timer: Any, model: onnx.ModelProto = MODEL, **options: Any) -> tuple[dict[str, str], PassReport]:
    """Node -> what `lathe.conv_algorithm` says; and the report."""
    instance = configure(Winograd, {"by": "time", **options})
    after, report = apply_pass(instance, model, Context(kernel_timer=timer))
    found = {
        node.name: entry.value
        for node in after.graph.node
        for entry in node.metadata_props
        if entry.key == metadata.CONV_ALGORITHM
    }
    return found, report


TIMES = {"winograd43": 1.0, "winograd23": 0.8, "direct": 0.9}


def test_the_fastest_is_taken() -> None:
    timer = Clock({"conv": TIMES}, noise=0.02)
    found, report = chosen(timer)
    assert found == {"conv": "winograd23"}
    assert [kind for kind, _ in timer.asked] == ["layers", "whole"]
    own, again, *others = (one["conv"] for one in timer.asked[0][1])
    assert own == again == "winograd43"
    assert others == ["winograd23", "direct"]
    assert [one["conv"] for one in timer.asked[1][1]] == ["winograd43", "winograd43", "winograd23"]
    assert "0.80x" in report.edits[0].what
    assert "of winograd43, ncnn's own" in report.edits[0].what
    assert report.metrics["network_time_ratio"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    "timer, says",
    [
        (Clock({"conv": TIMES}, loads=0.4), "in doubt by"),
        (Clock({"conv": TIMES}, apart=0.4), "in doubt by 28.6%"),
        (Clock({"conv": TIMES | {"winograd23": 0.995, "direct": 1.2}}), "direct takes 1.2 ms against 1 ms"),
        (Clock({"conv": TIMES}, whole=1.0), "as a whole the network gains nothing by such choices"),
        (Clock({"conv": TIMES}, whole=1.02), "as a whole the network gains nothing"),
        (Clock({"conv": TIMES}, noise=0.05, whole=0.995), "as a whole the network gains nothing"),
    ],
)
def test_a_gain_within_the_noise_keeps_the_own_choice(timer: Clock, says: str) -> None:
    found, report = chosen(timer)
    assert found == {"conv": "winograd43"}
    assert "ncnn's own" in report.edits[0].what
    assert says in report.edits[0].what
    assert "network_time_ratio" not in report.metrics


def judged(seed: int, layers: int, gain: float, loads: float) -> tuple[int, Comparison]:
    """Layers chosen, of which each has two algorithms that take 1 / (1 + gain) of the time; and what the whole network
    says that gains as much.
    """
    generator = np.random.default_rng(seed)
    names = [f"l{place}" for place in range(layers)]
    own = dict.fromkeys(names, "winograd43")
    variants = [own, own, dict.fromkeys(names, "winograd23"), dict.fromkeys(names, "direct")]
    speed = np.array([1, 1, 1 + gain, 1 + gain])
    compared = fastest({name: drawn(generator, 4, loads, 0.02) / speed for name in names}, variants)
    whole = compare(drawn(generator, 3, loads / 3, 0.02) / speed[:3], 2)
    return sum(tells(one) is not None for one in compared.values()), whole


@pytest.mark.parametrize("layers, loads", [(1, 0.05), (20, 0.0), (20, 0.05), (20, 0.15)])
def test_noise_alone_chooses_in_few_networks(layers: int, loads: float) -> None:
    """3 % of them have a layer that is chosen, by noise that rounds of a load have in common; 3 % of those stay. The
    bound: three standard errors of a share of 3 % in 200 networks more.
    """
    bound = LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 200)
    found = [judged(seed, layers, 0.0, loads) for seed in range(200)]
    assert np.mean([count > 0 for count, _ in found]) <= bound
    assert np.mean([whole.gains for _, whole in found]) <= bound
    assert np.mean([count > 0 and whole.gains for count, whole in found]) <= 0.01


def test_gains_that_are_real_are_seen() -> None:
    """1.2x, where loads vary by 5 %; less than that by 1 % in quiet ones."""
    found = [judged(seed, 20, 0.2, 0.05) for seed in range(20)]
    assert np.mean([count for count, _ in found]) > 19
    assert all(whole.gains for _, whole in found)
    count, whole = judged(0, 20, 0.03, 0.002)
    assert count == 20
    assert whole.gains


def test_a_gain_in_one_load_is_none() -> None:
    """However many rounds it has."""
    times = np.ones((8, 1000, 3)) * drawn(np.random.default_rng(0), 3, 0.001, 0.0)[:8, :1]
    times[0, :, 2] *= 0.2
    found = compare(times, 2)
    assert found.ratio < 0.9
    assert not found.gains


def test_more_comparisons_ask_for_more() -> None:
    times = drawn(np.random.default_rng(0), 3, 0.05, 0.0)
    assert compare(times, 2).doubt < compare(times, 2, 10).doubt < compare(times, 2, 100).doubt


def test_the_ratio_is_of_rounds() -> None:
    """A machine that becomes half as fast midway."""
    rounds = np.tile([1.0, 1.0, 0.9], (4, 20, 1)) * np.repeat([1.0, 2.0], 10)[:, None]
    found = compare(rounds, 2)
    assert found.ratio == pytest.approx(0.9)
    assert found.doubt == pytest.approx(0)
    assert found.gains


@pytest.mark.parametrize(
    "level, freedom, value",
    [(0.05, 1, 6.3138), (0.05, 2, 2.91999), (0.025, 7, 2.36462), (0.005, 10, 3.16927), (0.0005, 7, 5.40788)],
)
def test_students_distribution(level: float, freedom: int, value: float) -> None:
    """Of printed tables."""
    assert quantile(level, freedom) == pytest.approx(value, rel=2e-5)
    assert tail(value, freedom) == pytest.approx(level, rel=1e-4)
    assert tail(0.0, freedom) == 0.5


def test_layers_by_name_are_not_timed_but_stand_in_all_networks() -> None:
    text = "(float[1, 128, 7, 7] x) => (float[1, 128, P, Q] y) {{ [a] v = Conv <{0}> (x, w) [b] y = Conv <{0}> (v, w) }}"
    model = build(text.format("pads = [1, 1, 1, 1]"), w=random(128, 128, 3, 3))
    timer = Clock({"a": TIMES, "b": TIMES})
    found, report = chosen(timer, model, layers={"a": "direct"})
    assert found == {"a": "direct", "b": "winograd23"}
    assert {one["a"] for _, variants in timer.asked for one in variants} == {"direct"}
    assert "as the options say" in report.edits[0].what


def test_nothing_is_timed_where_all_is_said() -> None:
    timer = Clock({})
    assert chosen(timer, layers={"conv": "direct"})[0] == {"conv": "direct"}
    small = build(
        "(float[1, 4, 7, 7] x) => (float[1, 4, P, Q] y) { [conv] y = Conv (x, w) }", w=random(4, 4, 3, 3)
    )
    assert chosen(timer, small)[0] == {"conv": "direct"}
    assert not timer.asked


def test_a_layer_without_times_is_skipped() -> None:
    found, report = chosen(Clock({}))
    assert not found
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("conv", "ncnn has no layer of it that could be timed")
    ]


def test_without_a_timer() -> None:
    with pytest.raises(PassError, match="by=time needs ncnn"):
        chosen(None)
    assert configure(Winograd, {"by": "time"}).needs == ("kernel_timer",)


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package ncnn were not installed."""
    real = builtins.__import__

    def without(name: str, *others: Any, **named: Any) -> Any:
        if name == "ncnn":
            raise ImportError(name)
        return real(name, *others, **named)

    monkeypatch.delitem(sys.modules, "ncnn", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)
    with pytest.raises(UsageError, match=r"winograd\(by=time\): .*pip install 'onnx-lathe\[ncnn\]'"):
        check_needs([configure(Winograd, {"by": "time"})], Roles(), Recipe())
    check_needs([configure(Winograd, {})], Roles(), Recipe())


@pytest.mark.parametrize(
    "machine, profile, fits",
    [
        ("x86_64", "x86", True),
        ("AMD64", "x86", True),
        ("x86_64", "arm64-fp16", False),
        ("aarch64", "arm64-fp32", True),
        ("arm64", "arm64-fp16", True),
        ("aarch64", "x86", False),
        ("riscv64", "x86", False),
    ],
)
def test_times_are_of_this_machine(
    machine: str, profile: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(timing, "package", lambda: None)
    reason = timing.why_not(profile)
    assert (reason is None) == fits
    if reason is not None:
        assert f"profile={profile} is for another" in reason
        assert "--tuning" in reason or "tuning=FILE" in reason


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="times are those of x86 kernels")
def test_in_ncnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real timer gives times of every layer in every network, float and INT8."""
    pytest.importorskip("ncnn")
    monkeypatch.setattr(timing, "LOADS", 2)
    for budget in (timing.LAYERS, timing.WHOLE):
        monkeypatch.setitem(budget, "seconds", 0.0)
        monkeypatch.setitem(budget, "least", 3)
    said: list[str] = []
    timer = kernel_timer(said.append)
    text = """(float[N, 16, 7, 7] x) => (float[N, 16, P, Q] y) {
        [a] v = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (v)
        [q] s = QuantizeLinear (r, c, z)
        [dq] t = DequantizeLinear (s, c, z)
        [dw] u = DequantizeLinear <axis = 0> (i, d)
        [b] y = Conv <pads = [1, 1, 1, 1]> (t, u)
    }"""
    weight = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    constants = {
        "c": np.array(0.03, np.float32),
        "z": np.array(0, np.int8),
        "d": np.full(16, 0.002, np.float32),
    }
    model = build(text, w=random(16, 16, 3, 3), i=weight, **constants)
    own = {"a": "winograd63", "b": "winograd43"}
    variants = [own, own, dict.fromkeys(own, "direct"), own | {"a": "winograd23"}]
    times = timer.layers(model, "x86", variants)
    assert times.keys() == own.keys()
    for rounds in times.values():
        assert rounds.shape == (2, 3, 4)
        assert np.all(rounds > 0)
    whole = timer.whole(model, "x86", variants)
    assert whole.shape == (2, 3, 4)
    assert np.all(whole > 0)
    assert said[0] == "timing layers in ncnn: 1 of 2, 4 networks in turn"


def test_layers_of_int8_have_a_choice_of_their_own() -> None:
    """Their own is F(4, 3) whatever the channels, no hint is asked for, and sums are exact."""
    text = """(float[1, 16, 8, 8] x) => (float[1, 16, P, Q] y) {
        [q] s = QuantizeLinear (x, c, z)
        [dq] t = DequantizeLinear (s, c, z)
        [dw] u = DequantizeLinear <axis = 0> (i, d)
        [conv] y = Conv <pads = [1, 1, 1, 1]> (t, u)
    }"""
    weight = np.random.default_rng(0).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    constants = {
        "c": np.array(0.03, np.float32),
        "z": np.array(0, np.int8),
        "d": np.full(16, 0.002, np.float32),
    }
    model = build(text, i=weight, **constants)
    timer = Clock({"conv": {"winograd43": 1.0, "direct": 1.1}})
    found, report = chosen(timer, model)
    assert found == {"conv": "winograd43"}
    assert [one["conv"] for one in timer.asked[0][1]] == ["winograd43", "winograd43", "direct"]
    assert "weights in 16 bits take 8x the memory, sums are exact" in report.edits[0].what
    assert report.metrics["transformed_weight_bytes"] == 8 * weight.nbytes
    assert chosen(Clock({"conv": {"winograd43": 1.0, "direct": 0.7}}), model)[0] == {"conv": "direct"}


def test_a_network_that_ncnn_cannot_compute() -> None:
    pytest.importorskip("ncnn")
    text = "(float[1, 16, 7, 7] x) => (int64[4, U] z) { [conv] y = Conv (x, w) [nz] z = NonZero (y) }"
    model = build(text, w=random(16, 16, 3, 3))
    with pytest.raises(
        PassError, match=r"by=time runs the network in ncnn, which cannot compute 'nz' \(NonZero\)"
    ):
        chosen(kernel_timer(lambda text: None), model)


def test_files_are_written_once_and_each_load_takes_them_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights of a large network are hundreds of megabytes; every load is a process of its own all the same."""
    written: list[Path] = []
    asked: list[dict[str, Any]] = []
    plain = timing.write_weights

    def counted(layers: Any, file: Any, half: bool) -> None:
        written.append(Path(file.name))
        plain(layers, file, half)

    def answered(request: dict[str, Any], what: str, limit_s: float) -> Any:
        """Times that say which network they are of."""
        assert Path(request["weights"]).stat().st_size > 4 * 9 * 128 * 128
        assert all(Path(one).is_file() for one in [*request["params"], request["feeds"]])
        asked.append(request)
        times = [float(Path(one).stem) for one in request["params"]]
        return [times] if request["layers"] is None else {"a": [times]}

    monkeypatch.setattr(timing, "write_weights", counted)
    monkeypatch.setattr(timing, "ask", answered)
    timer = kernel_timer(lambda text: None)
    text = """(float[1, 128, 7, 7] x) => (float[1, 128, P, Q] y) {
        [a] v = Conv <pads = [1, 1, 1, 1]> (x, w)
        [b] y = Conv <pads = [1, 1, 1, 1]> (v, w)
    }"""
    model = build(text, w=random(128, 128, 3, 3))
    variants = [
        {"a": name, "b": "winograd43"} for name in ("winograd43", "winograd43", "winograd23", "direct")
    ]
    layers = timer.layers(model, "x86", variants)["a"]
    assert len(written) == 1
    assert len(asked) == timing.LOADS
    whole = timer.whole(model, "x86", variants)
    assert len(written) == 2
    for times in (layers, whole):
        np.testing.assert_array_equal(times, np.tile(np.arange(4.0), (timing.LOADS, 1, 1)))
    firsts = [Path(request["params"][0]).stem for request in asked[: timing.LOADS]]
    assert firsts == [str(number % 4) for number in range(timing.LOADS)]
    blobs = [dict(zip(one["params"], map(str, one["layers"]), strict=True)) for one in asked[: timing.LOADS]]
    assert all(one == blobs[0] for one in blobs)
    assert len(set(blobs[0].values())) == 2  # where a layer has a hint, its reader does not read it
    assert not any(path.parent.exists() for path in written)
