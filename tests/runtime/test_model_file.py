"""Loading refuses in one line what cannot be right; saving is whole or not at all."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import LatheError, ModelError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.signature import InputSpec, model_classes, model_inputs

FEEDS = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)}


def two_layers(opset: int = 21) -> onnx.ModelProto:
    """x [N, 16] -> MatMul [16, 64] -> Relu -> MatMul [64, 4] -> y; the first weight is raw data, the second
    is float_data.
    """
    generator = np.random.default_rng(0)
    first = onnx.numpy_helper.from_array(generator.standard_normal((16, 64)).astype(np.float32), "first")
    second = helper.make_tensor(
        "second", TensorProto.FLOAT, [64, 4], generator.standard_normal(256).astype(np.float32)
    )
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="matmul_1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "second"], ["y"], name="matmul_2"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "net", [x], [y], [first, second])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.metadata_props.add(key="lathe.sparse", value="{}")
    return model


def output(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, FEEDS)[0]


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        model_file.load(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The model with both weights in weights.bin."""
    path = tmp_path / "model.onnx"
    onnx.save_model(two_layers(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def edit_external(path: Path, **values: str) -> None:
    """Changes entries of the first weight's external data; an empty value removes the entry."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | values
    del tensor.external_data[:]
    for key, value in kept.items():
        if value:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_round_trip(tmp_path: Path) -> None:
    model, path = two_layers(), tmp_path / "model.onnx"
    before = model.SerializeToString()
    model_file.save(model, path)
    assert model.SerializeToString() == before
    assert path.stat().st_size == model_file.size_bytes(model)
    assert model_file.load(path) == model
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_reads_external_data(external: Path) -> None:
    model = model_file.load(external)
    expected = two_layers()
    for tensor, wanted in zip(model.graph.initializer, expected.graph.initializer, strict=True):
        assert not tensor.HasField("data_location")
        assert not tensor.external_data
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), onnx.numpy_helper.to_array(wanted))
    model_file.save(model, external.with_name("inline.onnx"))
    np.testing.assert_array_equal(output(external.with_name("inline.onnx")), output(external))


def test_reads_external_data_without_length(external: Path) -> None:
    edit_external(external, length="")
    assert len(model_file.load(external).graph.initializer[0].raw_data) == 16 * 64 * 4


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"hello world, this is text", "is not an ONNX model, or is truncated"),
        (
            b"7767517\n3 3\nInput x 0 1 x\n",
            "is not an ONNX model but a network of ncnn; run it with: optimize run",
        ),
        (
            b"vtrt\x00\x00\x00\x00",
            "is not an ONNX model but an engine of TensorRT-RTX; run it with: optimize run",
        ),
        (b"\x1c\x00\x00\x00TFL3\x00", "a model of LiteRT (TensorFlow Lite); run it with: optimize run FILE"),
        (b"<!DOCTYPE html><html>", "is not an ONNX model, or is truncated"),
        (b"\x08\x08", "it has no graph"),
        (b"\x00" * 64, "is not an ONNX model, or is truncated"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x10\x00\x00\x00ORTM\x00\x00", "an ORT-format model; run it with: optimize run FILE"),
    ],
)
def test_refuses_what_is_not_onnx(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_a_package_of_core_ml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    assert "is not an ONNX model but one of Core ML, which macOS alone runs; give the .onnx" in refusal(path)


def test_a_missing_file_is_told_with_one_that_is_there(tmp_path: Path) -> None:
    for name in ("model.ort.onnx", "other.npz", "network.bin"):
        (tmp_path / name).write_bytes(b"")
    assert f"no such file; did you mean '{tmp_path / 'model.ort.onnx'}'?" in refusal(tmp_path / "model.onnx")
    assert "no such file; check the name" in refusal(tmp_path / "weights.onnx")  # nothing is called so
    assert "no such file; check the name" in refusal(tmp_path / "none" / "model.onnx")


def test_refuses_missing_folder_and_truncated(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    assert "is a folder" in refusal(tmp_path)
    content = two_layers().SerializeToString()
    for length in range(
        1, len(content) - 60, 97
    ):  # the last fields are metadata, whose absence nobody can notice
        path = tmp_path / "cut.onnx"
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize("name", [b"matmul_2", b"second", b"lathe.sparse"])
def test_refuses_names_that_are_not_text(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(two_layers().SerializeToString().replace(name, b"\x97" * len(name)))
    assert "a name in it is not text" in refusal(path)


@pytest.mark.parametrize(
    "opset, reason",
    [(10, "opset 10 is older than 11"), (25, "opset 25 is newer than 24"), (0, "no version of")],
)
def test_refuses_other_opsets(tmp_path: Path, opset: int, reason: str) -> None:
    model, path = two_layers(), tmp_path / "model.onnx"
    model.opset_import[0].version = opset
    if not opset:
        model.opset_import[0].domain = "com.example"
    path.write_bytes(model.SerializeToString())
    assert reason in refusal(path)


@pytest.mark.parametrize("opset", [11, 24])
def test_takes_the_opsets_at_both_ends(tmp_path: Path, opset: int) -> None:
    model_file.save(two_layers(opset), tmp_path / "model.onnx")
    assert model_file.load(tmp_path / "model.onnx").opset_import[0].version == opset


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Relo"


def missing_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def short_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = bytes(100)


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -16


def output_of_nobody(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"


@pytest.mark.parametrize(
    "damage, reason",
    [
        (unknown_operator, "No Op registered for Relo"),
        (missing_input, "nowhere"),
        (short_weight, "tensor 'first'"),
        (negative_shape, "tensor 'first'"),
        (output_of_nobody, "'z'"),
    ],
)
def test_refuses_invalid_graphs(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model, path = two_layers(), tmp_path / "model.onnx"
    damage(model)
    path.write_bytes(model.SerializeToString())
    assert reason in refusal(path)


@pytest.mark.parametrize(
    "entries, reason",
    [
        ({"location": "gone.bin"}, "gone.bin: no such file"),
        ({"location": ""}, "without a location"),
        ({"location": "../outside.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"location": "link.bin"}, "outside the model's folder"),
        ({"location": "loop.bin"}, "loop.bin"),
        ({"offset": "2000"}, "too short"),
        ({"offset": "-8"}, "at -8"),
        ({"offset": "ten"}, "no number"),
        ({"length": "8"}, "8 bytes at 0, but its shape asks for 4096"),
        ({"length": "99999999999999"}, "its shape asks for 4096"),
    ],
)
def test_refuses_bad_external_data(external: Path, entries: dict[str, str], reason: str) -> None:
    secret = external.parent.with_name(f"{external.parent.name}-secret.bin")
    secret.write_bytes(bytes(10_000))
    external.with_name("link.bin").symlink_to(secret)
    external.with_name("loop.bin").symlink_to(external.with_name("loop.bin"))
    edit_external(external, **entries)
    assert reason in refusal(external)


def test_a_huge_shape_reserves_no_memory(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
    del model.graph.initializer[0].external_data[2:]
    external.write_bytes(model.SerializeToString())
    tracemalloc.start()
    try:
        assert "too short" in refusal(external)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_large_models_get_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = two_layers(), tmp_path / "model.onnx"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(3, dtype=np.int64), "small"))
    before = model.SerializeToString()
    model_file.save(model, tmp_path / "one.onnx")
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 4000)
    model_file.save(model, path)
    assert model.SerializeToString() == before
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data", "one.onnx"]
    assert path.stat().st_size + path.with_name("model.onnx.data").stat().st_size == model_file.size_bytes(
        model
    )
    stored = onnx.load(path, load_external_data=False)
    assert [tensor.data_location for tensor in stored.graph.initializer] == [TensorProto.EXTERNAL] * 2 + [
        TensorProto.DEFAULT
    ]
    offsets = [
        int(entry.value)
        for tensor in stored.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets == [0, 4096]
    np.testing.assert_array_equal(output(path), output(tmp_path / "one.onnx"))
    for tensor, wanted in zip(model_file.load(path).graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), onnx.numpy_helper.to_array(wanted))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("limit", [10**9, 4000])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, limit: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", limit)

    def fails(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fails)
    expected = LatheError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        model_file.save(two_layers(), path)
    if expected is LatheError:
        assert "the disk is full" in str(raised.value)
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_refuses_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path, reason in (
        (tmp_path / "missing" / "model.onnx", "its folder does not exist"),
        (tmp_path / "file" / "model.onnx", "not a folder"),
        (tmp_path, "is a folder, not a file"),
        (Path(os.devnull), "is a device, not a file"),
    ):
        with pytest.raises(LatheError) as refused:
            model_file.save(two_layers(), path)
        assert reason in str(refused.value)
        assert str(path) in str(refused.value)
    assert os.listdir(tmp_path) == ["file"]


def test_facts_cover_external_data(external: Path) -> None:
    facts = model_file.inspect_file(external)
    weights = external.with_name("weights.bin")
    assert facts.size_bytes == external.stat().st_size + weights.stat().st_size
    assert model_file.inspect_file(external) == facts
    content = bytearray(weights.read_bytes())
    content[7] ^= 1
    weights.write_bytes(content)
    changed = model_file.inspect_file(external)
    assert changed.sha256 != facts.sha256
    weights.unlink()
    with pytest.raises(ModelError, match=r"weights\.bin: no such file"):
        model_file.inspect_file(external)


def test_warns_of_operators_outside_the_standard() -> None:
    model = two_layers()
    assert model_file.warnings(model) == []
    for number in range(5):
        model.graph.node.append(
            helper.make_node("Gelu", ["a"], [f"g{number}"], name=f"gelu_{number}", domain="com.microsoft")
        )
    branch = helper.make_graph([helper.make_node("Magic", ["a"], ["m"], domain="mine")], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch))
    lines = model_file.warnings(model)
    assert len(lines) == 2
    assert lines[0].startswith("com.microsoft.Gelu is not an operator of the ONNX standard")
    assert "'gelu_0', 'gelu_1', 'gelu_2' and 2 more" in lines[0]
    assert "mine.Magic" in lines[1]
    assert "'writes m'" in lines[1]


def test_signature() -> None:
    model = two_layers()
    assert model_inputs(model) == [InputSpec("x", np.dtype(np.float32), (None, 16))]
    assert model_classes(model) == 4
    # as IR version 3 lists them
    model.graph.input.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, [16, 64]))
    assert [spec.name for spec in model_inputs(model)] == ["x"]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    assert model_classes(model) is None
    model.graph.input.append(helper.make_tensor_value_info("t", TensorProto.STRING, ["N"]))
    with pytest.raises(ModelError, match="input 't' is not a numeric tensor"):
        model_inputs(model)
    model.graph.input[-1].type.tensor_type.elem_type = 75
    with pytest.raises(ModelError, match="input 't' is not a numeric tensor"):
        model_inputs(model)
    del model.graph.input[-1]
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="input 's' is not a numeric tensor"):
        model_inputs(model)


def test_external_data_of_a_sparse_attribute_is_read(tmp_path: Path) -> None:
    values = np.array([1.5, -2.5], np.float32)
    (tmp_path / "values.bin").write_bytes(values.tobytes())
    external = TensorProto(
        name="v", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "values.bin"), ("offset", "0"), ("length", "8")):
        external.external_data.add(key=key, value=value)
    sparse = onnx.SparseTensorProto(
        values=external, indices=onnx.numpy_helper.from_array(np.array([0, 2])), dims=[3]
    )
    constant = helper.make_node("Constant", [], ["y"], sparse_value=sparse)
    graph = helper.make_graph(
        [constant], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    loaded = model_file.load(tmp_path / "model.onnx").graph.node[0].attribute[0].sparse_tensor.values
    assert loaded.data_location == TensorProto.DEFAULT
    assert np.array_equal(onnx.numpy_helper.to_array(loaded), values)
