"""Ways to install: a wheel, one from the source distribution, an editable one, and a bare checkout."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.house import FILES, ROOMS, ROOT, module_name
from tests.support.installations import CLEAN, Installation, built, made

pytest.importorskip("hatchling")

LOOK = """
from importlib.resources import files
import onnx_lathe
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.targets.core.registry import targets
assert (files("onnx_lathe.runtime.pack") / "dictionary-1.bin").is_file()
assert "prune" in all_passes() and "onnx" in targets()
print(onnx_lathe.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    installation = made(tmp_path_factory.mktemp("installed"))
    installation.install(wheel)
    return installation


def content(wheel: Path) -> Mapping[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_has_one_import_root_with_everything_in_it(wheel: Path) -> None:
    names = content(wheel).keys()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"onnx_lathe"}
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {_place(path) for path in FILES}
    assert {"onnx_lathe/py.typed", "onnx_lathe/runtime/pack/dictionary-1.bin"} <= names
    page = "onnx_lathe/optimizer/report/html/assets"
    assets = {path.name for path in (ROOT / "optimizer" / "report" / "html" / "assets").iterdir()}
    assert {f"{page}/{name}" for name in assets} <= names
    assert {"libraries.json", "plotly.LICENSE", "plotly-basic.min.js"} <= assets
    recipes = [path.name for path in (ROOT / "models" / "recipes").iterdir()]
    assert {f"onnx_lathe/optimizer/recipes/{name}" for name in recipes} <= names
    assert "phone.toml" in recipes
    assert not [name for name in names if "tests" in name or "__pycache__" in name]


def _place(path: Path) -> str:
    """`passes/fold/fold.py` -> onnx_lathe/passes/fold/fold.py."""
    place = module_name(path).replace(".", "/")
    return f"{place}/__init__.py" if path.name == "__init__.py" else f"{place}.py"


def test_a_wheel_works(installed: Installation) -> None:
    assert Path(installed.run("-c", LOOK).stdout.strip()).is_relative_to(installed.packages)
    assert "prune" in installed.run("-m", "onnx_lathe", "passes").stdout
    assert "small-download" in installed.run("-m", "onnx_lathe", "recipes").stdout
    script = next((installed.packages / "bin").glob("optimize*"), None)
    assert script is not None
    assert installed.run(str(script), "--version").stdout.startswith("optimize ")
    bare = f"from importlib.util import find_spec; print([find_spec(room) for room in {ROOMS[1:]}])"
    assert installed.run("-c", bare).stdout == "[None, None, None]\n"


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = built("build_sdist", tmp_path)
    shutil.unpack_archive(source, tmp_path)
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    assert {path.name for path in unpacked.iterdir()} >= {*ROOMS, "LICENSE", "README.md", "pyproject.toml"}
    (tmp_path / "again").mkdir()
    assert content(built("build_wheel", tmp_path / "again", unpacked)) == content(wheel)


def test_an_editable_installation_is_the_checkout(tmp_path: Path) -> None:
    installation = made(tmp_path / "environment")
    installation.install(built("build_editable", tmp_path))
    assert Path(installation.run("-c", LOOK).stdout.strip()) == ROOT / "onnx_lathe" / "__init__.py"


def test_a_bare_checkout_works(tmp_path: Path) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    environment = CLEAN | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def output(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert Path(output("-c", LOOK).strip()) == tmp_path / "onnx_lathe" / "__init__.py"
    assert "prune" in output("-m", "onnx_lathe", "passes")


def test_a_type_checker_finds_the_types_of_an_installation(installed: Installation, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    libraries = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "torch", "rich", "PIL", "ml_dtypes")
    skipped = f"[mypy-{','.join(f'{name}.*' for name in libraries)}]\nfollow_imports = skip\n"  # for speed
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n{skipped}", encoding="utf-8")
    code = (
        "import onnx_lathe\nreveal_type(onnx_lathe.passes())\nreveal_type(onnx_lathe.LatheError.exit_code)\n"
    )
    (tmp_path / "user.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed.python)]
    command += ["--cache-dir", str(tmp_path / "cache"), "user.py"]
    done = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert revealed == [
        "typing.Mapping[str, type[onnx_lathe.passes.core.base.Pass]]",
        "onnx_lathe.errors.ExitCode",
    ]
