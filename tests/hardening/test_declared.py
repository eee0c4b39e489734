"""What a model declares: senseless counts are refused however they are stored, and what is only unusual is not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files import model_file
from tests.support.builders import build

HEAD = '<ir_version: 9, opset_import: ["" : 17]> g '
COUNTED = {
    "value_int": "(int64[N] x) => (int64[M] y) { z = Constant<value_int = 0>() e = Constant<value_int = 1000000000>() "
    "o = Constant<value_int = 1>() r = Range(z, e, o) y = Add(x, r) }",
    "value_ints": "(float[N] x) => (float[M] y) { t = Constant<value_ints = [1000000000]>() y = Tile(x, t) }",
    "value_float": "(float[N] x) => (float[M] y) { z = Constant<value_float = 0.0>() e = Constant<value_float = 1e9>() "
    "o = Constant<value_float = 1.0>() r = Range(z, e, o) y = Add(x, r) }",
}
HONEST = {
    "anchors laid out by a computed count": "(float[N, 6] x) => (float[M, 6] y) { a = Constant<value_floats = "
    "[10.0, 13.0, 16.0, 30.0, 33.0, 23.0]>() i = Constant<value_ints = [0]>() b = Unsqueeze(a, i) s = Shape(x) "
    "y = Tile(b, s) }",
    "an input handed out under another name of its size": "(float[N, 4] x) => (float[M, 4] x, float[N, 4] y) { y = Relu(x) }",
    "an input handed out with fewer sizes named": "(float[N, 4] x) => (float[N, K] x, float[N, 4] y) { y = Relu(x) }",
}


def saved(text: str, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(parser.parse_model(HEAD + text).SerializeToString())
    return path


@pytest.mark.parametrize("text", COUNTED.values(), ids=COUNTED)
def test_a_count_is_found_however_a_constant_stores_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="makes more than 2,097,152 values or copies"):
        model_file.load(saved(text, tmp_path))


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_what_is_only_unusual_is_taken(text: str, tmp_path: Path) -> None:
    model_file.load(saved(text, tmp_path))


def test_an_input_handed_out_as_another_type_is_refused(tmp_path: Path) -> None:
    text = "(float[N, 4] x) => (float[N, 5] x, float[N, 4] y) { y = Relu(x) }"
    with pytest.raises(ModelError, match="output 'x' is an input too"):
        model_file.load(saved(text, tmp_path))


def test_a_stored_output_of_a_size_that_is_left_open(tmp_path: Path) -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y) { y = Add(x, w) }", w=np.zeros(4, np.float32))
    output = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [None])
    output.type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.output.append(output)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    model_file.load(path)
