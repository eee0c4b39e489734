"""Who may import whom, and that these tests fail when an arrow is turned round."""

from collections.abc import Iterator

import pytest

from tests.support.house import arrows, circles, imports, inner_rooms, room, sources

ALLOWED = {
    "face": {"leaf", "optimizer", "passes", "runtime"},
    "leaf": {"leaf"},
    "optimizer": {"leaf", "optimizer", "passes", "runtime"},
    "passes": {"leaf", "passes"},
    "runtime": {"leaf", "runtime"},
}
TORCH = ("onnx_lathe.runtime.torch_bridge", "onnx_lathe.runtime.training")
ARROWS_INSIDE_PASSES = 53
"""There were 105 when everything lay side by side."""


def wrong_way(module: str, source: str) -> Iterator[str]:
    """Imports that run against the direction of the house, or by a name that is not the one root."""
    allowed = ALLOWED[room(module)]
    for found in imports(source):
        top = found.module.partition(".")[0]
        if top in ("lathe", "optimizer", "passes", "runtime", "tests"):
            yield f"{module}:{found.line} imports {found.module}, which is not below onnx_lathe"
        elif top == "onnx_lathe" and found.module != module and room(found.module) not in allowed:
            yield f"{module}:{found.line} imports {found.module}{f' ({found.name})' if found.name else ''}"


def private_names(module: str, source: str) -> Iterator[str]:
    for found in imports(source):
        if found.module.partition(".")[0] == "onnx_lathe" and found.module != module:
            last = found.name or found.module.rpartition(".")[2]
            if last.startswith("_") and not last.startswith("__"):
                yield f"{module}:{found.line} imports the private name {last} of {found.module}"


def test_imports_go_one_way() -> None:
    assert [wrong for name, source in sources().items() for wrong in wrong_way(name, source)] == []


def test_no_private_name_of_another_module_is_imported() -> None:
    assert [wrong for name, source in sources().items() for wrong in private_names(name, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("onnx_lathe.passes.fold.fold", "from onnx_lathe.optimizer.gate import Gate"),
        ("onnx_lathe.passes.fold.fold", "from onnx_lathe.runtime.running import ort"),
        ("onnx_lathe.passes.fold.fold", "def f():\n    import onnx_lathe.runtime.running.ort"),
        ("onnx_lathe.runtime.running.ort", "from onnx_lathe.passes.graph import Graph"),
        ("onnx_lathe.runtime.running.ort", "from onnx_lathe.optimizer import gate"),
        ("onnx_lathe.errors", "from onnx_lathe.passes.core import base"),
        ("onnx_lathe.errors", "from onnx_lathe import optimize"),
        ("onnx_lathe.passes.fold.fold", "from passes.graph import Graph"),
        ("onnx_lathe.optimizer.gate", "import lathe"),
    ],
)
def test_a_turned_arrow_is_found(module: str, source: str) -> None:
    assert list(wrong_way(module, source))


def test_a_private_import_is_found() -> None:
    assert list(
        private_names(
            "onnx_lathe.optimizer.checkpoint", "from onnx_lathe.optimizer.report.record import _plain"
        )
    )


def test_no_circles() -> None:
    assert circles(arrows(sources())) == []


def test_a_circle_is_found() -> None:
    turned = {"a": "import b", "b": "from c import x", "c": "def late():\n    import a", "d": "import a"}
    assert circles(arrows(turned)) == [["a", "b", "c"]]


def test_rooms_of_passes_are_loosely_tied() -> None:
    inner = inner_rooms(arrows(sources()), "onnx_lathe.passes")
    assert sum(map(len, inner.values())) <= ARROWS_INSIDE_PASSES


def test_only_the_bridge_and_training_import_torch() -> None:
    users = {
        name
        for name, source in sources().items()
        if any(f.module.split(".")[0] == "torch" for f in imports(source))
    }
    assert users
    assert not [name for name in users if not name.startswith(TORCH)]


def test_numerics_know_arrays_alone() -> None:
    """No ONNX, no graphs: what knows them lives in passes/graph."""
    for name, source in sources().items():
        if name.startswith("onnx_lathe.passes.numerics"):
            tops = {found.module.partition(".")[0] for found in imports(source)}
            house = {f.module for f in imports(source) if f.module.startswith("onnx_lathe")}
            assert not tops & {"onnx", "onnx_graphsurgeon", "onnxruntime"}, name
            assert all(
                module.startswith("onnx_lathe.passes.numerics") or room(module) == "leaf" for module in house
            ), name
