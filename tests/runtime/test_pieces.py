"""A large model is written piece by piece, to the very bytes that protobuf writes."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files import model_file, pieces


def rich(size: int) -> onnx.ModelProto:
    """Initializers of all sorts between fields of graph and model that stand before and behind them."""
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    raw = numpy_helper.from_array(values, "raw")
    raw.doc_string = "behind the data"
    raw.metadata_props.add(key="k", value="v")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    text = helper.make_tensor("text", TensorProto.STRING, [1], [b"a"])
    empty = numpy_helper.from_array(np.zeros((0, 2), np.float32), "empty")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in ("x", "y")]
    node = helper.make_node("Mul", ["x", "raw"], ["y"], "mul", doc_string="text")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [raw, typed, text, empty], "doc", ends[:1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.metadata_props.add(key="lathe.sparse", value="raw")
    return model


@pytest.mark.parametrize("large", [1, 1 << 20])
def test_the_pieces_are_the_bytes_of_protobuf(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(pieces, "_LARGE_BYTES", large)
    model = rich(300_000)
    assert b"".join(pieces.pieces(model)) == model.SerializeToString()


def test_writing_a_large_model_makes_one_copy_of_its_largest_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "PIECED_BYTES", 1 << 20)
    model = rich(4_000_000)
    tracemalloc.start()
    try:
        model_file.save(model, tmp_path / "m.onnx")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * 16_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "m.onnx").read_bytes() == model.SerializeToString()


def test_data_of_another_size_than_the_shape_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "PIECED_BYTES", 1 << 20)
    model = rich(500_000)
    model.graph.initializer[0].dims[0] += 1
    with pytest.raises(ModelError, match="'raw' does not have the size"):
        model_file.save(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
