"""What the command itself costs: nothing is read, written or measured twice that is known."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer import measuring, pipeline
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.files import hashing, model_file
from onnx_lathe.runtime.running import guard, ort


@pytest.fixture
def given(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 3] y) {
        [one] y = MatMul (x, w)
    }""")
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32))
    return tmp_path / "m.onnx"


def test_a_settled_file_is_read_once_until_it_changes(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "settled", lambda found: True)
    first = hashing.content(given)
    with monkeypatch.context() as patch:
        patch.setattr(hashing.hashlib, "sha256", lambda: pytest.fail("it was read again"))  # type: ignore[attr-defined]
        assert hashing.content(given) == first
    before = given.stat().st_mtime_ns
    content = bytearray(given.read_bytes())
    content[-1] ^= 1
    given.write_bytes(content)
    assert hashing.content(given).sha256 != first.sha256
    os.utime(given, ns=(given.stat().st_atime_ns, before))
    assert hashing.content(given).sha256 != first.sha256, "the time of writing alone is not believed"


def test_a_file_that_was_just_written_is_read_again(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten within one tick of the file system's clock, it has the same place, size and times."""
    monkeypatch.setattr(hashing, "_state", lambda descriptor: (1, 2, 3, 4, 5))
    first = hashing.content(given).sha256
    content = bytearray(given.read_bytes())
    content[-1] ^= 1
    given.write_bytes(content)
    assert hashing.content(given).sha256 != first
    os.utime(given, (1e9, 1e9))
    later = hashing.content(given).sha256
    content[-1] ^= 1
    given.write_bytes(content)
    os.utime(given, (1e9, 1e9))
    assert hashing.content(given).sha256 != later, "the time of writing can be set back by anyone"


@pytest.mark.parametrize(("age", "expected"), [(2.0, False), (3.0, True), (-100.0, False)])
def test_a_file_has_settled_after_the_coarsest_tick(
    given: Path, monkeypatch: pytest.MonkeyPatch, age: float, expected: bool
) -> None:
    found = given.stat()
    monkeypatch.setattr(hashing.time, "time", lambda: max(found.st_mtime, found.st_ctime) + age)  # type: ignore[attr-defined]
    assert hashing.settled(found) is expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_what_is_remembered_is_no_other_process_s(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "settled", lambda found: True)
    hashing.content(given)
    child = os.fork()
    if child == 0:
        os._exit(len(hashing._KNOWN))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hashing._KNOWN


def test_external_data_that_was_just_written_is_tried_each_time(given: Path) -> None:
    apart = given.with_name("apart.onnx")
    onnx.save(onnx.load(given), apart, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert guard._key(str(apart)) != guard._key(str(apart))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "settled", lambda found: True)
        known = guard._key(str(apart))
        assert guard._key(str(apart)) == known
        given.with_name("w.bin").write_bytes(bytes(48))
        assert guard._key(str(apart)) != known


def test_a_name_of_external_data_is_seen_between_two_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_PIECE_BYTES", 16)
    for before in range(20):
        path = tmp_path / f"{before}"
        path.write_bytes(b"." * before + hashing.LOCATION + b"." * 20)
        assert hashing.content(path).locates
    path.write_bytes(b"." * 60)
    assert not hashing.content(path).locates


def test_facts_are_those_of_a_file_that_is_looked_into(given: Path) -> None:
    assert model_file.facts(given) == model_file.inspect_file(given)
    apart = given.with_name("apart.onnx")
    onnx.save(onnx.load(given), apart, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert model_file.facts(apart) == model_file.inspect_file(apart)


def test_a_step_that_changes_nothing_copies_file_and_figures(given: Path, tmp_path: Path) -> None:
    opened: list[object] = []
    plain = ort.session

    def session(model: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(model)
        return plain(model, *arguments, **options)

    out, steps = tmp_path / "out", tmp_path / "out" / "steps"
    command = [str(given), "--passes", "fold, fold", "--eval", str(given.with_name("d.npz")), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "session", session)
        assert (
            main([*command, "--no-html", "--no-latency", "--gate", "cosine >= 0.99", "--out", str(out)]) == 0
        )
    assert [one for one in opened if isinstance(one, Path) and one.parent == steps] == []
    first, second = steps / "01-fold.onnx", steps / "02-fold.onnx"
    assert first.read_bytes() == given.read_bytes() == second.read_bytes()
    assert not first.samefile(given), "the user's file is nobody's checkpoint"
    report = json.loads((out / "report.json").read_text())
    assert report["steps"][0]["quality"] == report["steps"][1]["quality"]
    assert report["steps"][1]["quality"]["agreement"] == report["gates"][0]["measured"] == pytest.approx(1)


def test_a_large_model_and_its_original_are_never_open_together(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    opened, together = [], []
    plain = ort.as_opened

    def as_opened(path: Path, threads: int = 0) -> Any:
        together.append(len(alive))
        session = plain(path, threads)
        alive.add(session)
        opened.append(path.name)
        return session

    monkeypatch.setattr(ort, "as_opened", as_opened)
    monkeypatch.setattr(measuring, "LATENCY_BUDGET_S", 0.02)
    monkeypatch.setattr(pipeline.Run, "large", True)
    command = [str(given), "--passes", "prune(sparsity=0.5, min_size=1)", "--quiet", "--no-html"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert opened == ["m.onnx", "01-prune.onnx", "m.onnx"]
    assert together == [0, 0, 0]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"][0]["quality"]["latency"] > 0 < report["baseline"]["latency"]


def test_what_cannot_be_compared_is_warned_of_once_where_data_lies_apart(given: Path, tmp_path: Path) -> None:
    model = onnx.load(given)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full((4, 3), np.nan, np.float32), "w")
    )
    onnx.save(model, given, save_as_external_data=True, location="w.bin", size_threshold=0)
    command = [str(given), "--passes", "fold", "--eval", str(given.with_name("d.npz")), "--quiet"]
    main([*command, "--no-html", "--no-latency", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    said = [one for one in report["warnings"] if "step 1" in one and "could not be compared" in one]
    assert len(said) == 1, said
