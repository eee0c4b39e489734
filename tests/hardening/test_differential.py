"""A sample of the parts differential, pipelines and targets of benchmarks/torture.py, and the networks that they draw."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.running import ort
from tests.support.house import ROOT

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("unguarded")
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
SHIPPED = ("test_operator_addmm", "test_operator_conv", "test_sequence_model1", "test_operator_reduced_mean")
TWO = ("test_Conv2d_groups_thnn", "test_BatchNorm2d_eval")


@pytest.fixture(scope="module")
def parts() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        for name in ("differential", "pipelines", "targets"):
            importlib.import_module(f"torture_parts.{name}")
        yield importlib.import_module("torture_parts")


@FEW
@given(SEEDS)
def test_a_seed_gives_a_network_that_runs_and_always_the_same(parts: ModuleType, seed: int) -> None:
    made = parts._graphs.network(seed)
    assert made.model == parts._graphs.network(seed).model
    found = ort.run(ort.session(made.model, threads=1), made.feeds)
    assert all(np.isfinite(values).all() for values in found.values())


def test_networks_have_every_opset_and_every_part(parts: ModuleType) -> None:
    found = [parts._graphs.network((0, number)) for number in range(200)]
    assert {made.opset for made in found} == set(range(7, 25))
    had = {part for made in found for part in made.parts}
    assert had >= {*parts._graph_blocks.PICTURES, *parts._graph_rows.ROWS} | {
        "shared weights",
        "several inputs",
        "several outputs",
        "initializers as inputs",
    }


def test_every_pass_has_a_setting_that_loses_nothing_or_a_reason(parts: ModuleType) -> None:
    settled = {one.name for one in parts._settings.LOSSLESS}
    own = {name for name, kind in all_passes().items() if kind.__module__.startswith("onnx_lathe.")}
    assert own == settled | parts._settings.WITHOUT.keys()
    assert not settled & parts._settings.WITHOUT.keys()


@FEW
@given(SEEDS)
def test_random_passes_on_random_networks_keep_what_they_promise(parts: ModuleType, seed: int) -> None:
    outcome = parts.pipelines.tried(0, seed)
    assert outcome.verdict != "failed", outcome


@pytest.mark.parametrize("name", [*SHIPPED, *TWO])
def test_nothing_is_lost_on_models_of_the_onnx_package(parts: ModuleType, name: str) -> None:
    (one,) = [
        found
        for found in parts._shipped.in_folders(*parts._shipped.FOLDERS)
        if found.name.endswith("/" + name)
    ]
    for setting in parts._settings.LOSSLESS:
        known = parts.differential.base(one, setting.few)
        outcome = parts.differential.compared(name, known, setting)
        assert outcome.verdict != "failed", outcome


def test_another_answer_is_noticed(parts: ModuleType) -> None:
    before = {"y": np.array([1.0, np.nan, 2.0], np.float32), "i": np.array([3, 4])}
    unlike = parts._equal.difference
    assert not unlike(before, before, 1e-5, dict)
    moved = before | {"y": np.array([1.0, np.nan, 2.001], np.float32)}
    assert "output 'y': by 0.0005" in unlike(before, moved, 1e-5, dict)
    assert not unlike(before, moved, 1e-5, lambda: {"y": 5e-4})
    assert "50.00% of its values" in unlike(before, before | {"i": np.array([3, 5])}, 1e-5, dict)
    assert "NaN" in unlike(before, before | {"y": np.ones(3, np.float32)}, 1e-5, dict)
    assert "int64 [2] became int32 [2]" in unlike(
        before, before | {"i": np.array([3, 4], np.int32)}, 1e-5, dict
    )


def test_targets_build_what_they_say_and_compute_the_same(parts: ModuleType, tmp_path: Path) -> None:
    """Those that need no process of their own: ncnn and LiteRT take seconds each."""
    made = parts._graphs.network((0, 3))
    found = parts.targets.through_targets("3", made.model, made.feeds, tmp_path, parts.targets.FILES)
    assert [outcome.verdict for outcome in found] == ["passed"] * len(parts.targets.FILES), found
