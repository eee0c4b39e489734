"""External data that leads out of the model's folder, is no file, or is replaced as it is read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files import external_data, model_file
from onnx_lathe.runtime.pack.files import pack_file
from tests.support.bounded import bounded
from tests.support.builders import build, random

SECRET = b"secret!!" * 200


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of one weight, its 1,024 bytes in data/weights.bin; the secret lies outside its folder."""
    (tmp_path / "secret.bin").write_bytes(SECRET)
    path = tmp_path / "here" / "model.onnx"
    (path.parent / "data").mkdir(parents=True)
    written = build("(float[N, 16] x) => (float[N, 16] y) { y = MatMul(x, w) }", w=random(16, 16))
    onnx.save_model(written, path, save_as_external_data=True, location="data/weights.bin", size_threshold=0)
    return path


def point(path: Path, location: str, copies: int = 0) -> None:
    """Names another place in the file, and adds weights that are there too."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    for number in range(copies):
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = f"w{number}"
    path.write_bytes(model.SerializeToString())


def absolute(path: Path) -> str:
    return str(path.parents[1] / "secret.bin")


def climbing(path: Path) -> str:
    return "data/../../secret.bin"


def linked(path: Path) -> str:
    (path.parent / "link.bin").symlink_to(path.parents[1] / "secret.bin")
    return "link.bin"


def linked_folder(path: Path) -> str:
    (path.parent / "up").symlink_to(path.parents[1], target_is_directory=True)
    return "up/secret.bin"


def pipe(path: Path) -> str:
    os.mkfifo(path.parent / "pipe.bin")
    return "pipe.bin"


def folder(path: Path) -> str:
    return "data"


def device(path: Path) -> str:
    return "/dev/zero"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("way", [absolute, climbing, linked, linked_folder, pipe, folder, device])
@pytest.mark.parametrize("command", ["inspect", "compile", "pack", "build"])
def test_no_way_out_of_the_folder(
    way: Callable[[Path], str],
    command: str,
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    point(model, way(model))
    out = tmp_path / "out"
    arguments = {
        "inspect": ["inspect", model, "--weights"],
        "compile": [model, "--passes", "fold", "--out", out],
        "pack": ["pack", model, "--out", out],
        "build": ["build", model, "--target", "onnx", "--out", out],
    }[command]
    ended = bounded(capfd, arguments)
    assert ended.code == 2
    assert str(model) in ended.line
    if out.exists():
        kept = [path.read_bytes() for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file()]
        assert not any(SECRET[:8] in content for content in kept)


def test_a_hard_link_to_a_file_of_somebody_else(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.link(model.parent / "data" / "weights.bin", model.parent / "other.bin")
    model_file.load(model)  # as package managers store files
    real = os.fstat

    def of_another(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[4] += 1  # the user
        return os.stat_result(found)

    monkeypatch.setattr(external_data.os, "fstat", of_another)
    with pytest.raises(ModelError, match=r"weights\.bin: is a hard link to a file of another user"):
        model_file.load(model)


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="opens by path alone")
@pytest.mark.parametrize("replaced", ["data/weights.bin", "data"])
@pytest.mark.parametrize("read", [model_file.load, model_file.inspect_file, model_file.externals])
def test_what_is_replaced_after_the_check_is_not_followed(
    read: Callable[[Path], object], replaced: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, or a folder above it, becomes a link as soon as its place has been found good."""
    (model.parents[1] / "weights.bin").write_bytes(SECRET)
    checked = external_data._place

    def then_replaced(path: Path, tensor: onnx.TensorProto) -> tuple[Path, Path]:
        found = checked(path, tensor)
        place = model.parent / replaced
        if not place.is_symlink():
            place.rename(model.parent / "moved")
            place.symlink_to(model.parents[1] / ("weights.bin" if place.suffix else "."))
        return found

    monkeypatch.setattr(external_data, "_place", then_replaced)
    with pytest.raises(ModelError, match=r"was replaced by a link as it was read|outside the model's folder"):
        read(model)


def test_the_file_that_was_checked_is_the_one_that_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file under the name, once it is open, changes nothing."""
    weights = model.parent / "data" / "weights.bin"
    wanted = weights.read_bytes()
    located = external_data.locate

    def then_replaced(*arguments: object) -> tuple[int, int]:
        weights.unlink()
        weights.write_bytes(bytes(10))
        return located(*arguments)

    monkeypatch.setattr(external_data, "locate", then_replaced)
    assert model_file.load(model).graph.initializer[0].raw_data == wanted


@pytest.mark.parametrize("command", [["inspect", "--weights"], ["pack"]], ids=["inspect", "pack"])
def test_a_file_that_a_thousand_tensors_want(
    model: Path, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """6 MB on disk, 6 GB in memory."""
    stored = onnx.load(model, load_external_data=False)
    tensor = stored.graph.initializer[0]
    tensor.dims[:] = [1500, 1000]
    del tensor.external_data[1:]
    model.write_bytes(stored.SerializeToString())
    (model.parent / "data" / "weights.bin").write_bytes(bytes(6_000_000))
    point(model, "data/weights.bin", copies=999)
    ended = bounded(capfd, [*command, model], file_bytes=6_000_000)
    assert ended.code == 2
    assert "read the same external data over and over" in ended.line


def test_tied_weights_may_share_their_bytes(model: Path) -> None:
    point(model, "data/weights.bin", copies=3)
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model_file.load(model).graph.initializer]
    assert len(arrays) == 4
    np.testing.assert_array_equal(arrays[0], arrays[3])


def test_mapped_data_is_that_of_the_file(model: Path, tmp_path: Path) -> None:
    """Packing reads external data without loading it."""
    pack_file(model, tmp_path / "p.lathe")
    assert (
        model_file.load(tmp_path / "p.lathe").graph.initializer[0].raw_data
        == (model.parent / "data" / "weights.bin").read_bytes()
    )
