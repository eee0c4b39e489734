"""Packed files where they are used: the commands, ONNX Runtime, loading, the target, the gate."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.errors import LatheError, ModelError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.pack import LIMIT_BYTES, files, pack, unpack
from onnx_lathe.runtime.pack.files import pack_file, unpack_file
from onnx_lathe.runtime.running import ort, sources
from onnx_lathe.runtime.targets.core.registry import find
from tests.support import packing
from tests.support.builders import build, random


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two layers with a bias, of 4 kB."""
    text = "(float[N,16] x) => (float[N,8] y) { h = Gemm<transB=1>(x, w, b)  a = Relu(h)  y = MatMul(a, v) }"
    model = build(text, w=packing.pruned((32, 16), 0.4, 7), b=random(32), v=random(32, 8))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A model with external data: two tensors in one file, one of them from the middle of it on, and a
    small one inside.
    """
    model = build(
        "(float[N,16] x) => (float[N,8] y) { h = MatMul(x, w)  y = MatMul(h, v) }",
        w=random(16, 32),
        v=random(32, 8),
    )
    onnx.save_model(
        model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=64
    )
    assert (tmp_path / "apart.bin").stat().st_size >= 3072
    return tmp_path / "apart.onnx"


def test_the_commands_restore_the_file(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = small.read_bytes()
    assert main(["pack", str(small)]) == 0
    packed = small.with_suffix(".lathe")
    size = packed.stat().st_size
    assert capsys.readouterr().out == (
        f"{small} {len(original):,} bytes -> {packed} {size:,} bytes, {len(original) / size:.4g}x smaller\n"
    )
    small.unlink()
    assert main(["unpack", str(packed)]) == 0
    assert small.read_bytes() == original
    assert capsys.readouterr().out == f"{packed} {size:,} bytes -> {small} {len(original):,} bytes\n"
    assert sorted(path.name for path in small.parent.iterdir()) == ["model.lathe", "model.onnx"]


def test_every_command_takes_a_packed_file(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "p.lathe"
    pack_file(small, packed)
    assert model_file.load(packed) == model_file.load(small)
    assert model_file.inspect_file(packed).size_bytes == packed.stat().st_size
    assert main(["inspect", str(packed)]) == 0
    assert "32x16" in capsys.readouterr().out
    assert (
        main([str(packed), "--passes", "fold", "--out", str(tmp_path / "out"), "--quiet", "--no-latency"])
        == 0
    )
    data = tmp_path / "data.npz"
    np.savez(data, x=random(20, 16))
    assert main(["gate", str(small), str(packed), "--data", str(data), "--gate", "sqnr >= 100"]) == 0


def test_a_session_opens_from_memory(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "p.lathe"
    pack_file(small, packed)
    feeds = {"x": random(3, 16)}
    expected = ort.run(ort.session(small), feeds)["y"]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    for source in (packed, str(packed), packed.read_bytes(), small.read_bytes()):
        assert np.array_equal(ort.run(ort.session(source), feeds)["y"], expected)
    assert sorted(tmp_path.rglob("*")) == before
    assert np.array_equal(
        onnxruntime.InferenceSession(unpack(packed.read_bytes())).run(None, feeds)[0], expected
    )


def test_a_session_says_what_is_wrong_with_a_packed_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "p.lathe"
    pack_file(small, packed)
    monkeypatch.setattr(sources, "SERIALIZED_LIMIT_BYTES", 1000)
    with pytest.raises(
        ModelError,
        match=r"p.lathe: unpacks to .* GB, more than the 1e-06 GB allowed here; .* optimize unpack",
    ):
        ort.session(packed)
    packed.write_bytes(packed.read_bytes()[:-9])
    for use in (ort.session, model_file.load):
        with pytest.raises(ModelError, match=r"p.lathe: is damaged or truncated"):
            use(packed)


def test_external_data_is_packed_with_the_model(apart: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "p.lathe", tmp_path / "back.onnx"
    sizes = pack_file(apart, packed)
    assert sizes.onnx == apart.stat().st_size + (tmp_path / "apart.bin").stat().st_size
    assert unpack_file(packed, back).packed == sizes.packed == packed.stat().st_size
    assert onnx.load(back) == model_file.load(apart) == model_file.load(packed)
    assert files.onnx_bytes(packed) == back.stat().st_size


def test_a_big_model_is_unpacked_with_external_data(
    apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(apart)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model.graph.initializer[0]), "same")
    )
    model.graph.initializer.append(onnx.TensorProto(name="f", data_type=1, dims=[300], float_data=range(300)))
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    packed, back = tmp_path / "p.lathe", tmp_path / "back.onnx"
    pack_file(tmp_path / "whole.onnx", packed)
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 1000)
    unpack_file(packed, back)
    data = tmp_path / "back.onnx.data"
    assert data.stat().st_size > 4096
    light = onnx.load(back, load_external_data=False)
    assert [entry.value for entry in light.graph.initializer[0].external_data] == [
        "back.onnx.data",
        "0",
        "2048",
    ]
    loaded = model_file.load(back)
    onnx.checker.check_model(str(back))
    for now, then in zip(loaded.graph.initializer, model.graph.initializer, strict=True):
        assert (now.name, now.dims, now.raw_data, now.float_data) == (
            then.name,
            then.dims,
            then.raw_data,
            then.float_data,
        )
    pack_file(back, tmp_path / "again.lathe")
    assert onnx.load_from_string(unpack((tmp_path / "again.lathe").read_bytes())) == loaded


def test_data_of_another_model_is_not_replaced(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, other = tmp_path / "p.lathe", tmp_path / "back.onnx.data"
    pack_file(small, packed)
    other.write_bytes(b"another model's")
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 1)
    with pytest.raises(UsageError, match=r"back\.onnx\.data: is there already"):
        unpack_file(packed, tmp_path / "back.onnx")
    assert other.read_bytes() == b"another model's"
    assert not (tmp_path / "back.onnx").exists()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_mistakes_are_one_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, original = small.with_suffix(".lathe"), small.read_bytes()
    assert "is a plain ONNX file, not a packed one; there is nothing to unpack" in refusal(
        capsys, "unpack", small
    )
    assert "no such file" in refusal(capsys, "pack", tmp_path / "nope.onnx")
    assert "no such file" in refusal(capsys, "unpack", tmp_path / "nope.lathe")
    assert "is a folder" in refusal(capsys, "pack", tmp_path)
    assert "is the input itself" in refusal(capsys, "pack", small, "-o", small)
    (tmp_path / "link.onnx").symlink_to(small)
    assert "is the input itself" in refusal(capsys, "pack", small, "-o", tmp_path / "link.onnx")
    assert "its folder does not exist" in refusal(capsys, "pack", small, "-o", tmp_path / "no" / "p.lathe")
    assert "is a folder, not a file" in refusal(capsys, "pack", small, "-o", tmp_path)
    packed.write_bytes(pack(original))
    assert "is there already; name the result with -o" in refusal(capsys, "pack", small)
    assert "is there already; name the result with -o" in refusal(capsys, "unpack", packed)
    assert "is packed already" in refusal(capsys, "pack", packed)
    assert "more than the 1e-06 GB allowed here" in refusal(
        capsys, "unpack", packed, "-o", tmp_path / "o.onnx", "--limit", "1e-6"
    )
    assert "--limit" in refusal(capsys, "unpack", packed, "-o", tmp_path / "o.onnx", "--limit", "0")
    assert "did you mean '--limit'" in refusal(capsys, "unpack", packed, "--limt", "2")
    (tmp_path / "cut.lathe").write_bytes(packed.read_bytes()[:60])
    assert "cut.lathe: is damaged or truncated" in refusal(capsys, "unpack", tmp_path / "cut.lathe")
    (tmp_path / "text.onnx").write_text("hello")
    assert "text.onnx: is not an ONNX model" in refusal(capsys, "pack", tmp_path / "text.onnx")
    assert small.read_bytes() == original
    assert not [path for path in tmp_path.iterdir() if path.name not in
                ("model.onnx", "link.onnx", "model.lathe", "cut.lathe", "text.onnx")]  # fmt: skip


def test_an_existing_file_is_replaced_when_it_is_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    assert main(["pack", str(small), "-o", str(tmp_path / "old")]) == 0
    assert unpack((tmp_path / "old").read_bytes()) == small.read_bytes()


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_interrupted_command(
    trouble: BaseException,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise trouble

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", fail)
    assert main(["pack", str(small)]) == (
        130 if isinstance(trouble, KeyboardInterrupt) else LatheError.exit_code
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (
        "interrupted" if isinstance(trouble, KeyboardInterrupt) else "the disk is full"
    ) in capsys.readouterr().err


def test_the_target_and_the_gate(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        str(small),
        "--passes",
        "fold",
        "--target",
        "onnx,pack",
        "--out",
        str(out),
        "--quiet",
        "--no-latency",
    ]
    assert main([*arguments, "--gate", "packed ratio >= 1.5; packed <= 3 kB"]) == 0
    report = json.loads((out / "report.json").read_text())
    packed = (out / "model.lathe").stat().st_size
    assert [target["files"] for target in report["targets"]] == [["model.onnx"], ["model.lathe"]]
    assert report["targets"][1]["size_bytes"] == packed == report["steps"][-1]["quality"]["packed"]
    assert report["targets"][1]["details"] == {
        "onnx_bytes": (out / "model.onnx").stat().st_size,
        "effort": "best",
    }
    ratio = f"{small.stat().st_size / packed:.4g}x"
    assert report["gates"][0]["message"].startswith(f"packed ratio >= 1.5: {ratio} (")
    assert unpack((out / "model.lathe").read_bytes()) == (out / "model.onnx").read_bytes()
    assert main([*arguments, "--gate", "packed ratio >= 1000"]) == 3


def test_packing_is_measured_only_when_a_gate_asks(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnx_lathe.optimizer.pipeline.packed_bytes", lambda path: pytest.fail("packed without need")
    )
    assert (
        main([str(small), "--passes", "fold", "--out", str(tmp_path / "out"), "--quiet", "--no-latency"]) == 0
    )


def test_the_gate_command_measures_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "p.lathe"
    pack_file(small, packed)
    for candidate in (small, packed):
        assert main(["gate", str(small), str(candidate), "--gate", "packed ratio >= 1.5"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert f"{small.stat().st_size / packed.stat().st_size:.4g}x" in first


def test_the_target_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    pack = find("pack")
    with pytest.raises(ModelError, match=r"broken.onnx: is not an ONNX model"):
        pack().build(tmp_path / "broken.onnx", tmp_path, pack.Config(), lambda message: None)
    assert LIMIT_BYTES == 4e9
