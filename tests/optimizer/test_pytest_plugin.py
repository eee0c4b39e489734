"""Gates as tests of a user's own project, run by pytest in a process of its own."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.judging import pytest_plugin
from tests.support.builders import build, random
from tests.support.house import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest_plugins = ["pytester"]

GRAPH = "(float[n,8] x) => (float[n,4] y) { y = MatMul(x, w) }"
TESTS = """
import numpy as np
import pytest

FILES = dict(base="model.onnx", candidate="rough.onnx", data="data.npz")

@pytest.mark.lathe_gate(**FILES, gates="top1 drop <= 100%")
def test_passes():
    pass

@pytest.mark.lathe_gate(**FILES, gates=["top1 drop <= 0.1%", "size ratio >= 0.9"])
def test_fails_before_its_body():
    open("body", "w")

@pytest.mark.lathe_gate(**FILES, gates="agreement >= 1%")
def test_opens(lathe_model):
    assert lathe_model.run({"x": np.zeros((2, 8), np.float32)})["y"].shape == (2, 4)
    assert lathe_model.verdicts.passed and lathe_model.path.name == "rough.onnx"

@pytest.mark.lathe_gate(**FILES, gates="mine >= 0.5", metrics={"mine": "metrics.py:mine"})
def test_of_my_own():
    pass

@pytest.mark.lathe_gate(**FILES, gates="topp1 >= 1%")
def test_mistaken():
    pass

@pytest.mark.lathe_gate(base="model.onnx", gates="size <= 1 MB")
def test_without_a_candidate():
    pass

@pytest.mark.lathe_gate(base="model.onnx", candidate=None, gates="size <= 1 MB")
def test_of_none(lathe_model):
    pass

def test_without_a_marker(lathe_model):
    pass

def test_other():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Two models and their data, with this very plug-in alone."""
    weight, x = random(8, 4), random(60, 8)
    onnx.save(build(GRAPH, w=weight), pytester.path / "model.onnx")
    onnx.save(build(GRAPH, w=weight + 0.9 * random(8, 4)), pytester.path / "rough.onnx")
    np.savez(pytester.path / "data.npz", x=x, labels=(x @ weight).argmax(1))
    pytester.makepyfile(TESTS, metrics="def mine(answers, labels):\n    return 0.75\n")
    pytester.makeini("[pytest]\naddopts = --strict-markers")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester


def test_gates_are_tests(project: pytest.Pytester) -> None:
    ran = project.runpytest_subprocess("-p", pytest_plugin.__name__, "--junitxml=out.xml")
    ran.assert_outcomes(passed=4, failed=3, errors=2)
    ran.stdout.fnmatch_lines_random(
        [
            "*gate FAILED  top1 drop <= 0.1%: * points, 95 % interval *missed by*",
            "*lathe_gate: gate 'topp1 >= 1%': there is no metric 'topp1'; did you mean 'top1'?*",
            "*@pytest.mark.lathe_gate: missing a required argument: 'candidate'*",
            "*@pytest.mark.lathe_gate: candidate takes a path, not NoneType*",
            "*the fixture lathe_model needs @pytest.mark.lathe_gate(base=..., candidate=...)*",
        ]
    )
    ran.stdout.no_fnmatch_line("*size ratio*missed*")
    ran.stdout.no_fnmatch_line("*Traceback*")
    assert not (project.path / "body").exists()
    told = (project.path / "out.xml").read_text()
    assert 'name="gate size ratio &gt;= 0.9"' in told
    assert 'name="kernels" value="ONNX Runtime' in told


MANY = """
import unittest
import pytest

FILES = dict(base="model.onnx", candidate="rough.onnx", data="data.npz")
failing = pytest.mark.lathe_gate(**FILES, gates="top1 drop <= 0.1%")
passing = pytest.mark.lathe_gate(base="model.onnx", candidate="model.onnx", gates="size ratio >= 1")

class TestOfUnittest(unittest.TestCase):
    @failing
    def test_fails_before_its_body(self):
        open("body", "w")

    @passing
    def test_passes(self):
        pass

    @failing
    @unittest.skip("not now")
    def test_skipped(self):
        pass

@failing
class TestClass:
    @passing
    def test_of_the_class(self, lathe_model):
        assert False

@passing
@failing
def test_two():
    assert False

@failing
@passing
def test_two_in_another_order():
    assert False

@failing
@pytest.mark.xfail(run=False)
def test_that_is_not_run():
    pass
"""


def test_every_marker_of_every_kind_of_test_is_judged(project: pytest.Pytester) -> None:
    project.makepyfile(test_many=MANY)
    ran = project.runpytest_subprocess("-p", pytest_plugin.__name__, "test_many.py")
    ran.assert_outcomes(passed=1, failed=4, skipped=1, xfailed=1)
    assert str(ran.stdout).count("\ngate FAILED  top1 drop <= 0.1%") == 4
    assert not (project.path / "body").exists()


def test_the_marker_is_known(project: pytest.Pytester) -> None:
    ran = project.runpytest_subprocess("-p", pytest_plugin.__name__, "--markers")
    ran.stdout.fnmatch_lines(["*@pytest.mark.lathe_gate(base, candidate, gates, data=None, ...)*"])


def test_pytest_finds_it_and_starts_as_fast_as_without() -> None:
    """Nothing that takes long is imported before a test asks for a gate."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = project["entry-points"]["pytest11"]["lathe"]
    assert import_module(place) is pytest_plugin
    heavy = ["onnx", "numpy", "onnxruntime", "onnx_lathe.optimizer.gate", "onnx_lathe.passes"]
    script = f"import pytest, sys, {place}\nprint([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
