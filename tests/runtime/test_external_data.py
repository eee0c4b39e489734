"""External data behind links, and tensors larger than protobuf can measure."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.graph.skeleton import skeleton
from onnx_lathe.runtime.files import model_file, tensors
from tests.support.builders import build, random


def two_layers() -> onnx.ModelProto:
    return build(
        "(float[N, 16] x) => (float[N, 4] y) { a = MatMul(x, first) b = Relu(a) y = MatMul(b, second) }",
        first=random(16, 64),
        second=random(64, 4),
    )


def save_apart(model: onnx.ModelProto, path: Path, location: str) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=location, size_threshold=0)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        model_file.load(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


def test_the_links_of_a_hub_cache_load(tmp_path: Path) -> None:
    """snapshots/HASH/model.onnx and its data are links into blobs/, under other names."""
    snapshot, blobs, model = tmp_path / "snapshots" / "abc", tmp_path / "blobs", two_layers()
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    path = snapshot / "model.onnx"
    save_apart(model, path, "model.onnx_data")
    size = path.stat().st_size + (snapshot / "model.onnx_data").stat().st_size
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        (snapshot / name).rename(blobs / f"{number:064x}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"{number:064x}")
    for found, expected in zip(weights(model_file.load(path)), weights(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model_file.inspect_file(path).size_bytes == size
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])  # it agrees


@pytest.mark.parametrize("location", ["../../blobs/secret.bin", "../secret.bin", "data.bin"])
def test_a_linked_model_opens_no_way_out_of_its_folders(tmp_path: Path, location: str) -> None:
    """A location of its own that climbs is refused, and so is a link to a third place."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for folder in (blobs, snapshot, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    save_apart(two_layers(), blobs / "model", "data.bin")
    stored = onnx.load(blobs / "model", load_external_data=False)
    for tensor in stored.graph.initializer:
        tensor.external_data[0].value = location
    (blobs / "model").write_bytes(stored.SerializeToString())
    path = snapshot / "model.onnx"
    path.symlink_to("../../blobs/model")
    for place in (blobs, tmp_path / "elsewhere", tmp_path / "snapshots"):
        (place / "secret.bin").write_bytes(bytes(10_000))
    (snapshot / "data.bin").symlink_to("../../elsewhere/secret.bin")
    assert "outside the model's folder" in refusal(path)
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_file.inspect_file(path)


def test_the_size_of_a_tensor_that_protobuf_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 GiB on it raises EncodeError; the size is added up then."""
    model = two_layers()
    monkeypatch.setattr(tensors, "MEASURED_BYTES", 0)
    for tensor in model.graph.initializer:
        assert tensors.tensor_size(tensor) == tensor.ByteSize()
    assert model_file.size_bytes(model) == model.ByteSize()


def test_the_size_of_a_tensor_is_told_without_writing_it() -> None:
    """In a process of its own, whose memory nothing else has been in: 128 MB of data, and no more beside them."""
    program = """
import resource
import onnx
from onnx_lathe.runtime.files.tensors import tensor_size

tensor = onnx.TensorProto(name="w", data_type=1, dims=[1 << 25], doc_string="said", raw_data=bytes(1 << 27))
tensor.metadata_props.add(key="a", value="b")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = tensor_size(tensor)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert after - before < 1 << 16, f"{after - before} kB more"
assert size == tensor.ByteSize()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_huge_tensor_is_never_measured_for_a_skeleton() -> None:
    """Without its data, because 2 GiB take their time; a tensor that was measured would be small and stay."""
    model = two_layers()
    model.graph.initializer.add(name="huge", data_type=onnx.TensorProto.FLOAT, dims=[1 << 20, 1 << 10])
    light = skeleton(model)
    assert "huge" in {value.name for value in light.graph.input}
    assert {tensor.name for tensor in light.graph.initializer} == {"first", "second"}
