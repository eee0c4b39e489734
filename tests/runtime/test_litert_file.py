"""What a .tflite file holds: alignment, versions, names, metadata."""

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as schema

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.litert import file
from onnx_lathe.runtime.targets.litert.file import Contents, pack, stored_bytes
from onnx_lathe.runtime.targets.litert.litert import LiteRT
from onnx_lathe.runtime.targets.litert.reader import ports
from onnx_lathe.runtime.targets.litert.tensors import Quantization, Tensor
from onnx_lathe.runtime.targets.litert.versions import least_runtime, version_of
from tests.support.builders import build, random
from tests.support.litert import content, written

TEXT = "(float[N, 3, 8, 8] image) => (float[N, 5, 6, 6] map) { a = Conv (image, w, b) map = Relu (a) }"


@pytest.fixture
def blob() -> bytes:
    model = build(TEXT, w=random(5, 3, 3, 3), b=random(5))
    return content(model, written(model), LiteRT.Config(preprocess="scale=1/255"))


def opened(blob: bytes) -> Any:
    return schema.Model.GetRootAs(blob, 0)


def test_constants_lie_at_multiples_of_sixteen(blob: bytes) -> None:
    model = opened(blob)
    weights = random(0)
    found = 0
    for index in range(model.BuffersLength()):
        values = model.Buffers(index).DataAsNumpy()
        if isinstance(values, np.ndarray) and values.size:
            start = blob.index(values.tobytes()) if values.size > 64 else None
            found += start is not None
            assert start is None or start % 16 == 0
    assert found
    assert weights.size == 0


def test_buffer_zero_is_empty_and_activations_use_it(blob: bytes) -> None:
    model = opened(blob)
    assert model.Buffers(0).DataLength() == 0
    graph = model.Subgraphs(0)
    assert {
        graph.Tensors(int(place)).Buffer() for place in (*graph.InputsAsNumpy(), *graph.OutputsAsNumpy())
    } == {0}


def test_names_and_open_sizes(blob: bytes) -> None:
    inputs, outputs = ports(blob, "model.tflite")
    assert [(port.name, port.sizes) for port in (*inputs, *outputs)] == [
        ("image", (None, 3, 8, 8)),
        ("map", (None, 5, 6, 6)),
    ]
    assert opened(blob).SignatureDefs(0).SignatureKey() == b"serving_default"


def test_metadata(blob: bytes) -> None:
    model = opened(blob)
    found = {}
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        found[entry.Name().decode()] = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert json.loads(found["lathe"])["preprocess"] == "scale=1/255"
    assert len(found["min_runtime_version"]) == 16
    assert found["min_runtime_version"].rstrip(b"\0") == b"1.5.0"


def test_equal_constants_share_a_buffer() -> None:
    weight = random(3, 3, 3, 3)
    text = "(float[1, 3, 8, 8] x) => (float[1, 3, 4, 4] z) { y = Conv (x, v) z = Conv (y, w) }"
    model = build(text, v=weight, w=weight.copy())
    assert len(content(model, written(model))) < 2 * weight.nbytes + 4000
    places = [one.inputs[1] for one in written(model).conversion.network.operators if one.code == "CONV_2D"]
    assert places[0] == places[1]


def test_int4_has_its_first_value_in_the_low_half() -> None:
    assert stored_bytes(np.array([1, -2, 7], np.int8), "INT4") == bytes([0xE1, 0x07])


@pytest.mark.parametrize(
    "code, types, fields, version",
    [
        ("CONV_2D", ("FLOAT32", "FLOAT32", "FLOAT32"), {}, 1),
        ("CONV_2D", ("INT8", "INT8", "INT8"), {}, 3),
        ("DEPTHWISE_CONV_2D", ("FLOAT32", "FLOAT32", "FLOAT32"), {"dilationWFactor": 2}, 2),
        ("FULLY_CONNECTED", ("INT8", "INT8", "INT8"), {}, 4),
        ("FULLY_CONNECTED", ("FLOAT32", "FLOAT32", "FLOAT32"), {"keepNumDims": True}, 5),
        ("ADD", ("INT8", "INT8", "INT8"), {}, 2),
        ("ADD", ("INT64", "INT64", "INT64"), {}, 4),
        ("DEQUANTIZE", ("FLOAT16", "FLOAT32"), {}, 3),
        ("DEQUANTIZE", ("INT4", "FLOAT32"), {}, 6),
        ("QUANTIZE", ("FLOAT32", "INT8"), {}, 1),
        ("RESIZE_BILINEAR", ("INT8", "INT32", "INT8"), {"halfPixelCenters": True}, 3),
        ("HARD_SWISH", ("INT8", "INT8"), {}, 1),
    ],
)
def test_versions(code: str, types: tuple[str, ...], fields: dict[str, Any], version: int) -> None:
    tensors = [Tensor(f"t{place}", kind, (1, 4, 4, 4)) for place, kind in enumerate(types)]
    inputs = tensors[:-1]
    if len(inputs) == 2 and code != "ADD":
        inputs.append(Tensor("bias", "INT32", (4,)))
    assert version_of(code, inputs, tensors[-1:], fields) == version


def test_a_grouped_convolution_has_a_version_of_its_own() -> None:
    shapes = [(1, 8, 8, 4), (6, 3, 3, 2), (6,), (1, 6, 6, 6)]
    tensors = [Tensor(f"t{place}", "FLOAT32", shape) for place, shape in enumerate(shapes)]
    assert version_of("CONV_2D", tensors[:-1], tensors[-1:], {}) == 6


def test_mul_counts_its_scales() -> None:
    def stored(scale: float) -> Tensor:
        return Tensor("x", "INT8", (1,), (), Quantization((scale,), (0,)))

    assert version_of("MUL", [stored(0.5), stored(0.5)], [stored(0.5)], {}) == 2
    assert version_of("MUL", [stored(2.0), stored(0.5)], [stored(0.5)], {}) == 3


def test_the_runtime_that_is_needed_is_left_out_where_it_is_not_known() -> None:
    from onnx_lathe.runtime.targets.litert.tensors import Operator

    assert least_runtime([Operator("ADD", [], []), Operator("CONV_2D", [], [], version=6)]) == "2.9.0"
    assert least_runtime([Operator("ADD", [], [], version=9)]) == ""


def test_a_file_that_flatbuffers_cannot_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LARGEST", 100)
    large = Tensor("w", "FLOAT32", (100,), (), None, np.zeros(100, np.float32))
    with pytest.raises(TargetError, match="at most 2 GB: store them in float16 or INT8"):
        pack(Contents([large], [], [], []))


@pytest.mark.parametrize("cut", [0, 4, 60, 200])
def test_a_file_cut_short_is_no_traceback(blob: bytes, cut: int) -> None:
    with pytest.raises(ModelError, match=r"^bad.tflite: is (no|a damaged) .tflite file"):
        ports(blob[:cut] + b"\xff" * 40 if cut > 8 else blob[:cut], "bad.tflite")
