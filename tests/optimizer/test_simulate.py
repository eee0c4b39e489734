"""`optimize simulate`: steps by hand, limits, scaling, stragglers against closed forms, and what is printed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.simulating import pipelines, scaling, stragglers
from onnx_lathe.optimizer.simulating.machines import machine_counts, parse_link, parse_machine
from onnx_lathe.runtime.training.parallel.choice import uniform
from onnx_lathe.runtime.training.parallel.costs import Compression, Group, Machine
from onnx_lathe.runtime.training.parallel.geometry import Axis, Layer
from onnx_lathe.runtime.training.parallel.grid import Pipeline
from onnx_lathe.runtime.training.parallel.step import BUCKET_BYTES, Step, step_of
from tests.support import vgg16
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.pages import chromium, opened

WIDE = Layer("wide", "gemm", 4096, 4096)
BEHIND = Layer("behind", "gemm", 4096, 4096, reads=(0,))
IMAGE = (Axis(32, 32, 3, before=1),) * 2
CHAIN = [
    Layer(f"c{at}", "conv", 64 if at else 3, 64, IMAGE, reads=(at - 1,) if at else ()) for at in range(4)
]
LINK = Machine(1e12, 1e-6, 1e9)


def step(
    layers: list[Layer], strategy: str, machine: Machine, workers: int, batch: int, data: int = 1
) -> Step:
    return step_of(uniform(layers, strategy, Group(workers, batch, data)), machine)


def test_a_step_by_hand() -> None:
    """Two layers of 4096 x 4096 on two machines: each a bucket of 64 MiB, the first summed while the other is computed."""
    found = step([WIDE, BEHIND], "data", Machine(1e12, 1e-6, 1e12), 2, 64)
    product = 2 * 32 * 4096 * 4096 / 1e12
    assert BUCKET_BYTES < 4 * 4096 * 4096
    summed = 2e-6 + 2 * 1 / 2 * 4 * 4096 * 4096 / 1e12
    assert found.arithmetic == pytest.approx((3 + 2) * product)
    assert found.exchanges == pytest.approx(2 * summed)
    # forward 2, backward 2 and 1; the sum of the second layer hides behind the backward pass of the first
    assert product > summed
    assert found.seconds == pytest.approx(5 * product + summed)
    assert found.exposed == pytest.approx(summed)


def test_small_layers_share_a_bucket() -> None:
    found = step(CHAIN, "data", Machine(1e12, 1.0), 8, 8)
    assert found.exchanges == 2 * 3 * 1.0  # one sum, 2 log2 8 messages of a second


def test_the_first_bucket_is_smaller() -> None:
    """Three layers of 1 MiB: the last one's gradients are summed alone, those of the others together."""
    chain = [Layer(f"f{at}", "gemm", 512, 512, reads=(at - 1,) if at else ()) for at in range(3)]
    assert step(chain, "data", Machine(1e12, 1.0), 2, 8).exchanges == 2 * 2 * 1.0


@pytest.mark.parametrize("waits", [False, True])
def test_compressed_gradients_by_hand(waits: bool) -> None:
    """A quarter of the bytes; to pack them takes the worker's time, and with `waits` so does sending them."""
    plain = Machine(1e12, 1e-6, 1e12)
    found = step([WIDE, BEHIND], "data", replace(plain, gradients=Compression(4, 1e-11, waits)), 2, 64)
    product, size = 2 * 32 * 4096 * 4096 / 1e12, 4 * 4096 * 4096
    summed, packing = 2e-6 + size / 4 / 1e12, 1e-11 * size
    assert found.packing == pytest.approx(2 * packing)
    assert found.exchanges == pytest.approx(2 * summed)
    exposed = 2 * summed if waits else summed
    assert found.seconds == pytest.approx(5 * product + 2 * packing + exposed)
    assert found.exposed == pytest.approx(exposed)
    alone = replace(plain, gradients=Compression(4, 1e-11, waits))
    assert step([WIDE, BEHIND], "data", alone, 1, 64).packing == 0


@pytest.mark.parametrize("strategy", ["data", "height", "width", "filter", "channel"])
def test_one_machine_has_no_communication(strategy: str) -> None:
    found = step(CHAIN, strategy, LINK, 1, 16)
    flops = sum((2 if not layer.reads else 3) * layer.product(16).flops for layer in CHAIN)
    assert found.seconds == found.arithmetic == pytest.approx(flops / 1e12)
    assert (found.moves, found.exchanges) == (0, 0)


@pytest.mark.parametrize("strategy", ["data", "height", "width"])
def test_an_endless_link_divides_arithmetic(strategy: str) -> None:
    endless = Machine(1e12)
    alone = step(CHAIN, strategy, endless, 1, 16).seconds
    assert step(CHAIN, strategy, endless, 4, 16).seconds == pytest.approx(alone / 4)
    assert step(CHAIN, strategy, endless, 2, 16, data=8).seconds == pytest.approx(alone / 16)


@pytest.mark.parametrize("strategy", ["data", "height", "filter", "channel"])
def test_slower_links_and_machines_never_help(strategy: str) -> None:
    times = [
        step(CHAIN, strategy, Machine(1e12, 1e-6, width), 4, 16).seconds
        for width in (1e6, 1e8, 1e10, math.inf)
    ]
    assert times == sorted(times, reverse=True)
    times = [step(CHAIN, strategy, Machine(rate, 1e-6, 1e9), 4, 16).seconds for rate in (1e10, 1e11, 1e12)]
    assert times == sorted(times, reverse=True)
    times = [step(CHAIN, strategy, Machine(1e12, wait, 1e9), 4, 16).seconds for wait in (1e-3, 1e-5, 0)]
    assert times == sorted(times, reverse=True)
    assert all(step(CHAIN, strategy, LINK, 4, batch).seconds > 0 for batch in (1, 3, 16))


def test_a_link_carries_no_more_than_its_bandwidth() -> None:
    found = step([WIDE, BEHIND], "data", Machine(1e18, 0, 1e9), 4, 64)
    assert found.seconds >= found.exchanges == pytest.approx(2 * 2 * 3 / 4 * 4 * 4096 * 4096 / 1e9)


def test_curves() -> None:
    machine = Machine(1e12, 1e-6, 1e9)
    strong = scaling.curve(CHAIN, "data", machine, [1, 2, 4, 8, 64], 8, weak=False)
    assert [point.machines for point in strong.points] == [1, 2, 4, 8, 64]
    assert strong.efficiency(strong.points[0]) == 1
    # 64 machines for 8 samples: most have none
    assert strong.points[-1].step.arithmetic == strong.points[-2].step.arithmetic
    assert strong.fastest is not None
    assert strong.fastest.machines == min(strong.points, key=lambda point: point.step.seconds).machines
    weak = scaling.curve(CHAIN, "data", machine, [1, 4, 16], 8, weak=True)
    assert [point.batch for point in weak.points] == [8, 32, 128]
    assert len({point.step.arithmetic for point in weak.points}) == 1
    efficiencies = [weak.efficiency(point) for point in weak.points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    free = scaling.curve(CHAIN, "data", Machine(1e12), [1, 4, 16], 8, weak=True)
    assert [free.efficiency(point) for point in free.points] == [1, 1, 1]


def test_the_best_group_is_taken() -> None:
    """Of one sample, only layers can be cut: the larger group computes less."""
    found = scaling.curve(CHAIN, "height", Machine(1e9, 1e-9, 1e12), [1, 2, 8], 1, weak=False)
    assert [point.how for point in found.points] == ["height", "height=2", "height=8"]
    fixed = scaling.curve(CHAIN, "height=4", LINK, [1, 2, 8], 8, weak=False)
    assert [point.machines for point in fixed.points] == [8]
    assert fixed.refused[2] == "no multiple of height=4"


def test_memory_marks_what_does_not_fit() -> None:
    roomy = scaling.curve([WIDE, BEHIND], "data", LINK, [1, 2], 8, weak=False)
    tight = Machine(1e12, 1e-6, 1e9, memory=roomy.points[0].step.memory - 1)
    found = scaling.curve([WIDE, BEHIND], "filter", tight, [1, 2], 8, weak=False)
    assert [point.fits for point in found.points] == [False, True]
    assert found.fastest is not None
    assert found.fastest.machines == 2


def test_a_pipeline_is_idle_as_theory_says() -> None:
    """(S-1)/(m+S-1), of stages that take the same time, on an endless link."""
    layers = [Layer(f"l{at}", "gemm", 64, 64, reads=(at - 1,) if at else (0,)) for at in range(8)]
    layers[0] = Layer("l0", "gemm", 96, 64)  # it has two products where the others have three
    found = pipelines.pipeline_step(layers, Pipeline(1, 4, 8), 64, Machine(1e9))
    assert 1 - found.arithmetic / found.seconds == pytest.approx(3 / 11)
    alone = pipelines.pipeline_step(layers, Pipeline(1, 1, 1), 64, Machine(1e9))
    assert alone.seconds == pytest.approx(step(layers, "data", Machine(1e9), 1, 64).seconds)
    assert found.arithmetic == pytest.approx(alone.seconds / 4)


def test_stages_are_balanced() -> None:
    assert pipelines.balanced([5, 1, 1, 1, 5], 3) == [(0, 1), (1, 4), (4, 5)]
    assert pipelines.balanced([1, 1], 2) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("machines", [2, 16, 256])
def test_the_slowest_of_n_by_closed_forms(machines: int) -> None:
    harmonic = sum(1 / one for one in range(1, machines + 1))
    (found,) = stragglers.slowest(stragglers.parse_stragglers("exponential=0.5"), machines, [machines], 0)
    assert found == pytest.approx(1 + 0.5 * harmonic, rel=0.01)
    (found,) = stragglers.slowest(stragglers.parse_stragglers("slow=0.05x10"), machines, [machines], 0)
    assert found == pytest.approx(1 + 9 * (1 - 0.95**machines), rel=0.02)
    found = stragglers.slowest(stragglers.parse_stragglers("exponential=0.5"), machines, [machines - 1], 0)[0]
    assert found == pytest.approx(1 + 0.5 * (harmonic - 1), rel=0.01)


def test_means_and_seeds() -> None:
    for text in ("lognormal=0.4", "exponential=0.3", "slow=0.1x5"):
        asked = stragglers.parse_stragglers(text)
        (found,) = stragglers.slowest(asked, 1, [1], 3)
        assert found == pytest.approx(asked.mean, rel=0.01)
        assert stragglers.slowest(asked, 4, [3], 7) == stragglers.slowest(asked, 4, [3], 7)


def test_backups_and_servers() -> None:
    load = stragglers.Load(arithmetic=1.0, waiting=0.25, weights=0.01, samples=32)
    never = stragglers.parse_stragglers("slow=0x2")
    (row,) = stragglers.rows_of([(16, load)], never, 0)
    assert (row.backups, row.synchronous_s, row.backup_s) == (1, 1.25, 1.25)
    assert row.synchronous_rate == 16 * 32 / 1.25
    assert row.backup_rate == 15 * 32 / 1.25
    assert row.asynchronous_s == pytest.approx(1.02 / 16)
    often = stragglers.parse_stragglers("slow=0.05x10")
    (row,) = stragglers.rows_of([(16, load)], often, 0, backups=4)
    assert row.backup_s < row.synchronous_s / 2
    # the server's link carries weights once for each update, however many machines there are
    (row,) = stragglers.rows_of([(4096, load)], never, 0)
    assert row.asynchronous_s == 0.01


def test_machines_are_read() -> None:
    assert parse_link("100Gb/s,2us") == (2e-6, 12.5e9)
    assert parse_link("1.5 GB/s, 10ns") == (1e-8, 1.5e9)
    found = parse_machine("10TFLOP/s", "1Mb/s,0s", "16GB")
    assert found == Machine(1e13, 0.0, 125000.0, 16e9)
    assert machine_counts(6) == [1, 2, 4, 6]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vgg16.saved(tmp_path_factory.mktemp("vgg16"), "N")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["simulate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_what_is_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, path, "--machines", 16, "--batch", 64, "--stragglers", "lognormal=0.3")
    lines = [line.split() for line in text.splitlines()]
    assert "138 M weights" in text
    assert "10 TFLOP/s, 12.5 GB/s, 2 us a message" in " ".join(text.split())
    assert [line[0] for line in lines if line and line[0] in ("1", "2", "4", "8", "16")] == [
        "1",
        "2",
        "4",
        "8",
        "16",
    ] * 3
    assert ["strategy", "fastest", "on"] in [line[:3] for line in lines]


def test_json_has_the_same_points(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        path,
        "--machines",
        4,
        "--parallel",
        "data",
        "--parallel",
        "pipeline=2,micro=8",
        "--parallel",
        "auto=2",
    )
    found: dict[str, Any] = json.loads(printed(capsys, *arguments, "--json"))
    assert [one["strategy"] for one in found["strong"]] == ["data", "pipeline=2,micro=8", "auto=2"]
    first = found["strong"][0]["points"][0]
    assert first["efficiency"] == 1
    assert first["exchanges"] == 0
    assert [point["machines"] for point in found["strong"][1]["points"]] == [2, 4]
    assert found["memory"] is None
    assert found == json.loads(printed(capsys, *arguments, "--json"))


def test_the_function_gives_what_the_command_gives(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (path, "--machines", 4, "--parallel", "height", "--stragglers", "slow=0.1x3", "--seed", 5)
    told = json.loads(printed(capsys, *arguments, "--json"))
    asked: dict[str, Any] = {"machines": 4, "parallel": "height", "stragglers": "slow=0.1x3", "seed": 5}
    found = json.loads(json.dumps(onnx_lathe.simulate(str(path), **asked).as_json()))
    assert found == told
    model = build("(float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    onnx.save(model, tmp_path / "model.onnx")
    inside = onnx_lathe.simulate(model, **asked).as_json()
    assert inside["strong"] == onnx_lathe.simulate(tmp_path / "model.onnx", **asked).as_json()["strong"]
    unasked = json.loads(json.dumps(onnx_lathe.simulate(path).as_json()))
    assert unasked == json.loads(printed(capsys, path, "--json"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"machines": 2.5}, "machines takes a whole number, not 2.5"),
        ({"parallel": 4}, "parallel takes a text or a list of texts, not 4"),
        ({"link": 3}, "link takes a text, not int"),
        ({"batch": 0}, "--batch takes a number from 1 on, not 0"),
    ],
)
def test_the_function_refuses(path: Path, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        onnx_lathe.simulate(path, **asked)
    assert str(refusal.value) == told


def test_the_page(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.html"
    printed(capsys, path, "--machines", 4, "--stragglers", "slow=0.1x3", "--html", file)
    page = file.read_text(encoding="utf-8")
    assert "@@" not in page.split("<script>")[0]
    assert page.count("<table>") == 4
    assert "Plotly.react" in page
    assert "default-src 'none'" in page
    assert "vgg16.onnx on up to 4 machines" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--link", "fast"], "--link takes a bandwidth and a latency, such as 100Gb/s,2us, not 'fast'"),
        (["--link", "0Gb/s,2us"], "--link takes"),
        (["--rate", "10"], "--rate takes a number with its unit, such as 10TFLOP/s, not '10'"),
        (["--rate", "1e308PFLOP/s"], "--rate takes a number with its unit"),
        (["--link", "1e308PB/s,0s"], "no link is like that"),
        (["--link", "1e-300b/s,0s"], "no link is like that"),
        (["--link", "1Gb/s,1e300s"], "no link is like that"),
        (["--seed", "-1", "--stragglers", "lognormal=0.3"], "--seed takes a number from 0 on, not -1"),
        (["--memory", "16"], "--memory takes a number with its unit"),
        (["--machines", "0"], "--machines takes a number from 1 to 65,536, not 0"),
        (["--batch", "0"], "--batch takes a number from 1 on, not 0"),
        (["--parallel", "hight"], "hight is nothing that it knows"),
        (["--parallel", "server"], "a server has no step"),
        (["--parallel", "data=2,height=2"], "leave data= out"),
        (["--parallel", "height=4096", "--machines", "4"], "on up to 4 machines: no multiple of height=4096"),
        (["--stragglers", "normal=1"], "--stragglers takes lognormal=0.3"),
        (["--stragglers", "slow=2x3"], "a share up to 1"),
        (["--backups", "2"], "give --stragglers too"),
        (["--html", "page.txt"], "is written as .html"),
    ],
)
def test_refusals(path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, ["simulate", str(path), *arguments])


def test_what_does_not_fit_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(
        capsys, path, "--parallel", "auto", "--parallel", "data", "--memory", "1MB", "--machines", 2
    )
    assert "too little memory" in text
    assert "auto: not on 2: 2 workers of 0.001 GB each cannot hold the network" in text


def test_every_number_of_machines_without_a_figure_is_explained(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(
        capsys,
        path,
        "--parallel",
        "height",
        "--parallel",
        "pipeline=2,micro=40",
        "--machines",
        3,
        "--batch",
        64,
    )
    assert "height: not on 3: no multiple of 2, of the smallest group that shares layers by height" in text
    assert "pipeline=2,micro=40: not on 1, 3: no multiple of pipeline=2,micro=40" in text
    assert "weak scaling, pipeline=2,micro=40: not on 1, 3" not in text
    text = printed(capsys, path, "--parallel", "pipeline=2,micro=40", "--machines", 2, "--each", 4)
    assert "weak scaling, pipeline=2,micro=40: not on 2: 8 samples are too few for 40 micro-batches" in text


def test_a_small_network_stops_paying_sooner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "(float[N, 3, 16, 16] x) => (float[N, 8, 16, 16] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    onnx.save(build(text, w=random(8, 3, 3, 3)), tmp_path / "model.onnx")
    ends = []
    for link in ("1Gb/s,100us", "100Gb/s,1us"):
        found = json.loads(
            printed(capsys, tmp_path / "model.onnx", "--machines", 256, "--link", link, "--json")
        )
        ends.append(found["strong"][0]["worth"])
    assert ends[0] < ends[1]


def test_the_page_draws_in_a_browser(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing fails, nothing is fetched, and both charts are there."""
    file = tmp_path / "scaling.html"
    printed(capsys, path, "--machines", 4, "--html", file)
    with chromium() as browser, opened(browser, file, 360, "dark") as (page, said, requested):
        assert said == []
        assert requested == [file.as_uri()]
        assert page.locator(".main-svg").count() >= 2
        assert page.evaluate("document.documentElement.scrollWidth") == 360
