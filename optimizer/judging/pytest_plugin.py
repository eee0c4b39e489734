"""Gates as tests: a marker that judges two models before the test's body runs, and a fixture that opens the candidate.

    @pytest.mark.lathe_gate(base="model.onnx", candidate="int8.onnx", data="data.npz", gates="top1 drop <= 0.5%")
    def test_int8(lathe_model):
        outputs = lathe_model.run({"image": images})

Arguments are those of `onnx_lathe.gate`; paths are meant from pytest's root folder. A test may have several markers, as
its class or module may: all are judged, and the fixture is of the closest. pytest finds this module by the
entry point `pytest11`, in every run of every project that has Lathe installed: it imports nothing of Lathe before a
test asks for it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from onnx_lathe.optimizer.judging.judgement import Judgement

MARKER = "lathe_gate"
_FILES = ("base", "candidate", "data", "classes", "symbols", "postprocess")
"""Arguments that are paths, perhaps with a part or a function behind a colon."""


class LatheModel:
    """The candidate of a test's closest marker. `verdicts`: those on it."""

    def __init__(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker(MARKER)
        if marker is None:
            pytest.fail(
                f"the fixture lathe_model needs @pytest.mark.{MARKER}(base=..., candidate=...)", pytrace=False
            )
        self._item, self._session = item, None
        self.path = Path(_arguments(item, marker)["candidate"])

    @property
    def session(self) -> Any:
        """An open session, such as of ONNX Runtime."""
        if self._session is None:
            from onnx_lathe.optimizer.finished import open_finished

            self._session = open_finished(self.path, 1).session
        return self._session

    def run(self, feeds: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """Outputs by name, of inputs by name."""
        from onnx_lathe.runtime.running import ort

        return ort.run(self.session, feeds)

    @property
    def verdicts(self) -> "Judgement":
        return _judgements(self._item)[0]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(base, candidate, gates, data=None, ...): judge a model against another by `onnx_lathe.gate`",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Judges before the body runs, of methods of unittest.TestCase too."""
    skipped = (getattr(item, name, None) for name in ("obj", "cls"))
    if any(getattr(one, "__unittest_skip__", False) for one in skipped):
        return
    failed = [verdict.message for found in _judgements(item) for verdict in found if not verdict.passed]
    if failed:
        pytest.fail("\n".join(f"gate FAILED  {message}" for message in failed), pytrace=False)


@pytest.fixture
def lathe_model(request: pytest.FixtureRequest) -> LatheModel:
    """The candidate of the test's marker `lathe_gate`, opened when it is used."""
    return LatheModel(request.node)


_FOUND = pytest.StashKey["list[Judgement]"]()


def _judgements(item: pytest.Item) -> "list[Judgement]":
    """Of each marker, the closest first; judged once for a test."""
    if _FOUND not in item.stash:
        item.stash[_FOUND] = [_judged(item, marker) for marker in item.iter_markers(MARKER)]
    return item.stash[_FOUND]


def _judged(item: pytest.Item, marker: pytest.Mark) -> "Judgement":
    """A mistake is the test's failure, in one line."""
    from onnx_lathe.errors import LatheError
    from onnx_lathe.optimizer.judging.calling import gate

    arguments = _arguments(item, marker)
    try:
        found = gate(arguments.pop("base"), arguments.pop("candidate"), **arguments)
    except LatheError as error:
        found, mistake = None, str(error)
    if found is None:  # outside of the block, or pytest shows the error twice
        pytest.fail(f"{MARKER}: {mistake}", pytrace=False)
    item.add_report_section("call", "lathe", "\n".join(verdict.message for verdict in found))
    told = [(f"gate {verdict.gate}", verdict.message) for verdict in found] + [("kernels", found.kernels)]
    item.user_properties += [one for one in told if one not in item.user_properties]
    return found


def _arguments(item: pytest.Item, marker: pytest.Mark) -> dict[str, Any]:
    """Of the marker, paths made absolute. Fails the test for wrong ones."""
    from inspect import signature

    from onnx_lathe.optimizer.judging.calling import gate

    mistake = ""
    try:
        found = dict(signature(gate).bind(*marker.args, **marker.kwargs).arguments)
    except TypeError as error:
        found, mistake = {}, str(error)
    for name in ("base", "candidate"):
        if not mistake and not isinstance(found[name], str | Path):
            mistake = f"{name} takes a path, not {type(found[name]).__name__}"
    if mistake:
        pytest.fail(f"@pytest.mark.{MARKER}: {mistake}", pytrace=False)
    for name in _FILES:
        if isinstance(found.get(name), str | Path):
            found[name] = os.path.normpath(item.config.rootpath / Path(found[name]).expanduser())
    if isinstance(found.get("metrics"), Mapping):
        found["metrics"] = {
            name: os.path.normpath(item.config.rootpath / one) if isinstance(one, str) else one
            for name, one in found["metrics"].items()
        }
    return found
