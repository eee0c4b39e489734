"""A user's project may have modules named as Lathe's folders are: each side finds its own."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.data.functions import open_function
from onnx_lathe.runtime.data.preprocess import Preprocess
from onnx_lathe.runtime.files.signature import InputSpec
from onnx_lathe.runtime.training.hooks import load_hook
from tests.support import builders
from tests.support.projects import FILES, FOUND, HOOK, LOADER, NAMES, lathe, run, script, write
from tests.support.tensorrt_bindings import filled

COMMANDS = {"script": script, "module": lathe}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of images, by one layer."""
    text = "(float[n, 1, 28, 28] image) => (float[n, 10] logits) { f = Flatten(image) logits = Gemm(f, w) }"
    weight = np.random.default_rng(0).standard_normal((784, 10)).astype(np.float32)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(builders.build(text, w=weight), path)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stand-in for TensorRT, so that its process runs everywhere."""
    return write(tmp_path_factory.mktemp("site"), {"tensorrt/__init__.py": filled()})


@pytest.mark.parametrize(
    ("command", "way"), [("script", "beside"), ("script", "path"), ("module", "cwd, path and launched")]
)
def test_each_side_finds_its_own(command: str, way: str, model: Path, site: Path, tmp_path: Path) -> None:
    """In a hook, in a data function, in torchrun's workers, and in the process of TensorRT."""
    pytest.importorskip("torch")
    project, out = write(tmp_path / "project", FILES), tmp_path / "out"
    code = tmp_path / "code" if way == "path" else project
    write(code, {"hook.py": HOOK, "loader.py": LOADER})
    cwd, place = (project, Path()) if "cwd" in way else (tmp_path, code)
    arguments = [str(model), "--passes", "retrain(epochs=1)", "--retrain", f"{place / 'hook.py'}:retrain"]
    arguments += ["--train", f"{place / 'loader.py'}:batches", "--out", str(out), "--no-latency"]
    arguments += ["--target", "tensorrt"]
    if "launched" in way:
        arguments += ["--launch", "--nproc-per-node=1"]
    done = run(_there(COMMANDS[command](*arguments)), cwd, [site, *([project] if "path" in way else [])])
    assert f"the hook has {FOUND}" in done.stderr
    assert f"the loader has {FOUND}" in done.stderr
    assert (out / "report.json").is_file()
    assert list(out.rglob("*.engine"))


@pytest.mark.parametrize(
    ("command", "files"),
    [("script", FILES), ("module", FILES), ("module", {"passes/note.txt": "", "runtime/note.txt": ""})],
)
def test_commands_list_the_same_wherever_they_run(
    command: str, files: dict[str, str], tmp_path: Path, neutral: str
) -> None:
    """A module, and a folder that holds no Python."""
    write(tmp_path, files)
    assert run(_there(COMMANDS[command]("passes")), tmp_path, [tmp_path]).stdout == neutral


@pytest.fixture(scope="module")
def neutral(tmp_path_factory: pytest.TempPathFactory) -> str:
    listed = run(lathe("passes"), tmp_path_factory.mktemp("nowhere")).stdout
    assert "prune" in listed
    return listed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_user_code_imports_the_module_beside_it(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    code = (
        f"from {name} import VALUE\nimport numpy as np\n\ndef batches():\n    yield np.full((2, 3), VALUE)\n"
    )
    code += "\ndef retrain(module, job):\n    return VALUE\n"
    write(tmp_path, {form.format(name): "VALUE = 7.0\n", "code.py": code})
    try:
        assert load_hook(f"{tmp_path / 'code.py'}:retrain")(None, None) == 7
        spec = InputSpec("x", np.dtype(np.float64), (None, 3))
        source = open_function(tmp_path / "code.py", "batches", [spec], Preprocess(), None)
        assert next(source.batches(2)).inputs["x"].max() == 7
    finally:
        sys.modules.pop(name, None)


def _there(command: list[str]) -> list[str]:
    if not Path(command[0]).exists():
        pytest.skip("the command is not installed beside this Python")
    return command
