"""Passes and targets of other packages, found by their entry points."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import builders
from tests.support.installations import install
from tests.support.projects import lathe, run, write

pytest.importorskip("hatchling")

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "a-plug"
version = "1.0"

[project.entry-points."onnx_lathe.passes"]
halve = "a_plug.halve"

[project.entry-points."onnx_lathe.targets"]
count = "a_plug.count"

[tool.hatch.build.targets.wheel]
packages = ["a_plug"]
"""
HALVE = """
from dataclasses import dataclass

import numpy as np

from onnx_lathe import Pass, PassReport, option, register


@register
class Halve(Pass):
    \"\"\"Divides every initializer.\"\"\"

    name = "halve"

    @dataclass(frozen=True)
    class Config:
        by: float = option(2.0, "divisor", low=1.0)

    def apply(self, graph, context):
        report = PassReport()
        for node in graph.nodes:
            for tensor in node.inputs[1:]:
                tensor.values = tensor.values / np.float32(self.config.by)
                report.edit(node.name, f"divided by {self.config.by:g}")
        return report
"""
COUNT = """
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.targets.core.registry import register


@register
class Count(Target):
    name = "count"
    help = "a text file: how many nodes the model has"
    outputs = ("model.count.txt",)

    def build(self, model, directory, options, progress):
        path = directory / "model.count.txt"
        path.write_text(str(len(model_file.load(model).graph.node)))
        return Artifact((path,), path.stat().st_size)
"""
FILES = {
    "pyproject.toml": PROJECT,
    "a_plug/__init__.py": "",
    "a_plug/halve.py": HALVE,
    "a_plug/count.py": COUNT,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the plug-in's distribution into."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, write(tmp_path_factory.mktemp("source"), FILES))
    return folder


def test_a_plug_in_is_a_pass_and_a_target_like_any_other(site: Path, tmp_path: Path) -> None:
    text = "(float[n, 3] x) => (float[n, 2] y) { y = MatMul(x, w) }"
    onnx.save(builders.build(text, w=np.ones((3, 2), np.float32)), tmp_path / "model.onnx")
    arguments = [
        "model.onnx",
        "--passes",
        "halve(by=4)",
        "--target",
        "onnx,count",
        "--out",
        "out",
        "--no-latency",
    ]
    run(lathe(*arguments), tmp_path, [site])
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert (onnx.numpy_helper.to_array(made.graph.initializer[0]) == 0.25).all()
    assert (tmp_path / "out" / "model.count.txt").read_text() == "1"
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in record["steps"]] == ["halve"]
    assert [target["files"] for target in record["targets"]] == [["model.onnx"], ["model.count.txt"]]


def test_a_plug_in_is_listed(site: Path, tmp_path: Path) -> None:
    code = "import onnx_lathe as lathe; print(lathe.passes()['halve'].Config().by, lathe.targets()['count'].help)"
    code += "; from onnx_lathe.optimizer.cli import main; main(['passes']), main(['passes', 'halve'])"
    done = run([lathe()[0], "-c", code], tmp_path, [site])
    assert done.stdout.startswith("2.0 a text file: how many nodes the model has\n")
    assert "Divides every initializer" in done.stdout
    assert "divisor" in done.stdout


def test_an_option_that_a_plug_in_does_not_have_is_refused(site: Path, tmp_path: Path) -> None:
    onnx.save(builders.build("(float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }"), tmp_path / "model.onnx")
    done = run(lathe("model.onnx", "--passes", "halve(buy=4)"), tmp_path, [site], code=2)
    assert (
        done.stderr
        == "optimize: pass 'halve' has no option 'buy'; did you mean 'by'?; see: optimize passes halve\n"
    )


@pytest.mark.parametrize(
    ("kind", "file", "text", "message"),
    [
        ("passes", "halve.py", "import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("passes", "halve.py", HALVE.replace('"halve"', '"fold"'), "two passes are named 'fold'"),
        ("passes", "halve.py", "raise SystemExit('not here')", "SystemExit: not here"),
        ("passes", "halve.py", HALVE.replace("name = ", "title = "), "Halve has no 'name'"),
        ("targets", "count.py", COUNT.replace('"count"', '"onnx"'), "two targets are named 'onnx'"),
        ("targets", "count.py", COUNT.replace("outputs = ", "files = "), "Count has no 'outputs'"),
    ],
)  # fmt: skip
def test_a_plug_in_that_is_of_no_use_is_named(
    kind: str, file: str, text: str, message: str, site: Path, tmp_path: Path
) -> None:
    """One line and exit code 2, whatever is wrong with it."""
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site" / "a_plug" / file).write_text(text, encoding="utf-8")
    done = run(lathe(kind), tmp_path, [tmp_path / "site"], code=2)
    name = file.removesuffix(".py")
    start = f"optimize: plug-in '{name}' of a-plug (onnx_lathe.{kind}: a_plug.{name}) cannot be loaded: "
    assert done.stderr.startswith(start)
    assert message in done.stderr
    assert done.stderr.endswith("; mend it, or uninstall it\n")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
