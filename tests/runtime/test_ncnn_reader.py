"""The tests' own reader of ncnn's files: against ncnn, on files of others, and on broken ones."""

import io
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.runtime.targets.ncnn import dialect
from tests.support.ncnn_layers import LOADS, PARAMS, kinds
from tests.support.ncnn_reader import Layer, read, read_bin, read_param

OTHERS = Path(__file__).resolve().parents[1] / "support" / "ncnn_files"
BIN_SIZES = {
    "realesr-animevideov3-x2": 1_247_368,
    "realcugan-up2x-no-denoise": 2_551_408,
    "waifu2x-upconv7-photo-scale2.0x": 1_106_248,
}
"""Of the `.bin` that belongs to each file, with weights in float16."""

CASES = """
BatchNorm 1 0=3 1=1.0e-05
Bias 1 0=5
Convolution 1 0=4 1=3 11=2 5=1 6=72
Convolution 1 0=4 1=3 5=1 6=108 8=2
Convolution 1 0=4 1=3 5=1 6=108 8=102
Convolution 2 0=4 1=3 6=108 19=1
Convolution1D 1 0=4 1=3 5=1 6=24
Convolution3D 1 0=4 1=3 11=2 21=1 6=48
ConvolutionDepthWise 1 0=6 1=3 5=1 6=54 7=6
ConvolutionDepthWise 1 0=6 1=3 5=1 6=54 7=6 8=1
ConvolutionDepthWise 1 0=6 1=3 5=1 6=54 7=6 8=102
ConvolutionDepthWise1D 1 0=6 1=3 6=36 7=3
ConvolutionDepthWise3D 1 0=6 1=3 6=162 7=6
Deconvolution 1 0=4 1=3 5=1 6=108
Deconvolution1D 1 0=4 1=3 5=1 6=24
Deconvolution3D 1 0=4 1=2 5=1 6=64
DeconvolutionDepthWise 1 0=6 1=3 5=1 6=54 7=6
DeconvolutionDepthWise1D 1 0=6 1=3 5=1 6=18 7=6
DeconvolutionDepthWise3D 1 0=6 1=3 5=1 6=162 7=6
DeformableConv2D 2 0=4 1=3 5=1 6=72
Dequantize 1 0=3 1=3
Embed 1 0=3 1=7 2=1 3=21
Embed 1 0=3 1=7 2=1 3=21 18=1
GRU 1 0=3 1=45 2=0
GRU 1 0=3 1=90 2=2 8=1
Gemm 1 3=1 5=1 6=1 8=5 9=3 10=4
Gemm 1 4=1 7=5 9=3
Gemm 1 3=1 5=1 8=5 9=3 18=1
GroupNorm 1 0=2 1=6 2=1.0e-05
InnerProduct 1 0=4 1=1 2=20
InnerProduct 1 0=4 1=1 2=20 8=2
InstanceNorm 1 0=3 1=1.0e-05
InstanceNorm 1 0=3 1=1.0e-05 2=0
LSTM 1 0=3 1=60 2=0
LSTM 1 0=3 1=200 2=2 3=5
LSTM 1 0=3 1=120 2=2 8=1
LayerNorm 1 0=7
MemoryData 0 0=5 1=2 2=3
MemoryData 0 0=5 1=2 21=0
MemoryData 0
MultiHeadAttention 3 0=6 1=2 2=48 3=5 4=7
MultiHeadAttention 1 0=6 1=2 2=36 18=1
Normalize 1 3=3
PReLU 1 0=3
Padding 1 6=3
Quantize 1 0=3
RMSNorm 1 0=3
RNN 1 0=3 1=30 2=2
Requantize 1 0=3 1=1 2=3
Scale 1 0=3 1=1
Scale 2 0=-233
""".strip().split("\n")
"""Type, number of inputs, parameters."""


def _text(*lines: str) -> str:
    blobs = sum(int(line.split()[3]) for line in lines)
    return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines]) + "\n"


def _followed(case: str) -> str:
    """A network of the case's layer and, beside it, a PReLU that loads its slope after it."""
    layer_type, count, *params = case.split()
    inputs = [f"in{i}" for i in range(int(count))]
    return _text(
        *(f"Input {name} 0 1 {name}" for name in inputs),
        " ".join([layer_type, "case", count, "1", *inputs, "out", *params]),
        "Input x 0 1 x",
        "PReLU after 1 1 x y 0=1",
    )


def _filled(layers: list[Layer], storage: str, last: float | None = None) -> bytes:
    """`.bin` with random weights; the last one is `last`."""
    generator = np.random.default_rng(0)
    file = io.BytesIO()
    for layer in layers:
        for blob in layer.loads():
            values = generator.uniform(0.5, 1, blob.shape).astype(np.float32)
            if layer is layers[-1] and last is not None:
                values[:] = last
            if blob.tagged and storage == "table":  # the writer makes none of so few weights
                indices = np.zeros(-(-values.size // 4) * 4, np.uint8)
                file.write(b"\1\0\0\0" + np.full(256, 0.5, "<f4").tobytes() + indices.tobytes())
                continue
            weight = dialect.Weight(dialect.Stored(values), blob.tagged)
            one = dialect.Layer("", "", [], [], weights=[weight])
            dialect.write_weights([one], file, half=storage == "float16")
    return file.getvalue()


@pytest.mark.parametrize("storage", ["float32", "float16", "table"])
@pytest.mark.parametrize("case", CASES)
def test_it_takes_as_many_bytes_as_ncnn(case: str, storage: str, tmp_path: Path) -> None:
    ncnn = pytest.importorskip("ncnn")
    text = _followed(case)
    data = _filled(read_param(text), storage, last=0.625)
    param, binary = tmp_path / "a.param", tmp_path / "a.bin"
    param.write_text(text)
    binary.write_bytes(data)
    layers = read(param, binary)
    assert layers[-1].weights["slope"].tolist() == [0.625]
    assert {kind for layer in layers for kind in layer.storage.values()} <= {"raw", storage}
    net = ncnn.Net()
    assert (net.load_param(str(param)), net.load_model(str(binary))) == (0, 0)
    extractor = net.create_extractor()
    value = ncnn.Mat(np.full(4, -1, np.float32)).clone()
    extractor.input("x", value)
    failed, got = extractor.extract("y")
    assert not failed
    assert np.array(got).tolist() == [-0.625] * 4


def test_every_type_that_loads_something_has_a_case() -> None:
    assert {case.split()[0] for case in CASES} == set(LOADS)
    assert set(LOADS) <= set(PARAMS)


def test_it_knows_the_types_of_the_installed_ncnn() -> None:
    ncnn = pytest.importorskip("ncnn")
    for layer_type in PARAMS:
        assert ncnn.layer_to_index(layer_type) >= 0, layer_type


@pytest.mark.parametrize("name", BIN_SIZES)
def test_a_file_of_others_and_its_weights_fit(name: str) -> None:
    layers = read_param((OTHERS / f"{name}.param").read_text())
    data = _filled(layers, "float16")
    assert len(data) == BIN_SIZES[name]
    read_bin(layers, data)
    assert {kind for layer in layers for kind in layer.storage.values()} == {"raw", "float16"}


@pytest.mark.parametrize("name", BIN_SIZES)
def test_the_targets_dialect_is_that_of_others(name: str) -> None:
    theirs = (OTHERS / f"{name}.param").read_text()
    layers = read_param(theirs)
    ours = dialect.param_text(
        [dialect.Layer(one.type, one.name, list(one.bottoms), list(one.tops), one.params) for one in layers]
    )
    assert read_param(ours) == layers
    for line, other in zip(theirs.splitlines(), ours.splitlines(), strict=True):
        words, others = line.split(), other.split()
        assert len(words) == len(others)
        for word, mine in zip(words, others, strict=True):
            assert word == mine or ("." in word and word.split("=")[0] == mine.split("=")[0])
        if words == others:
            assert line == other


CONVOLUTION = "Convolution conv 1 1 x y 0=2 1=1 5=1 6=4"


def test_values_have_their_types() -> None:
    lines = ("Input a 0 1 x", 'Interp up 1 1 x y 0=2 1=1.5 2=-2.5e-1 9="2,*(0w,2)" -23330=5,3,1,2,1,4 31=64')
    params = read_param(_text(*lines))[1].params
    assert params == {0: 2, 1: 1.5, 2: -0.25, 9: "2,*(0w,2)", 30: (3, 1, 2, 1, 4), 31: 64}
    assert [type(params[key]) for key in (0, 1, 31)] == [int, float, int]


def test_an_array_of_either_form_is_the_same() -> None:
    old, new = (
        read_param(_text("Input a 0 1 x", f"Crop c 1 1 x y {array}"))[1].params
        for array in ("-23309=2,-4,4", "9=-4,4")
    )
    assert old == new == {9: (-4, 4)}


def test_carriage_returns_and_blank_lines_at_the_end_change_nothing() -> None:
    text = _text("Input a 0 1 x", CONVOLUTION)
    assert read_param(text.replace("\n", "\r\n") + "\r\n\n") == read_param(text)


def test_weights_have_the_layers_shape_and_stored_type() -> None:
    layers = read_param(_text("Input a 0 1 x", "Convolution c 1 1 x y 0=3 1=1 11=3 6=9 8=2"))
    codes = bytes(range(9)) + bytes(3)
    scales = np.array([1, 2, 3, 4], "<f4").tobytes()
    read_bin(layers, 0x000D4B38.to_bytes(4, "little") + codes + scales)
    weights = layers[1].weights
    assert weights["weight"].dtype == np.int8
    assert weights["weight"].tolist() == np.arange(9).reshape(3, 1, 3, 1).tolist()
    assert weights["weight_int8_scales"].tolist() == [1, 2, 3]
    assert weights["bottom_int8_scale"].tolist() == [4]


def test_a_table_is_looked_up() -> None:
    layers = read_param(_text("Input a 0 1 x", CONVOLUTION.replace("5=1 ", "")))
    table = np.arange(256, dtype="<f4") / 2
    read_bin(layers, b"\0\0\0\1" + table.tobytes() + bytes([7, 0, 255, 1]))
    assert layers[1].weights["weight"].ravel().tolist() == [3.5, 0, 127.5, 0.5]
    assert layers[1].storage["weight"] == "table"
    assert layers[1].tables["weight"][1].ravel().tolist() == [7, 0, 255, 1]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("Convolution conv 1 1 x y 0=2.0 1=1 6=4", "0=2.0: the layer reads int, this is float"),
        ("Clip conv 1 1 x y 0=-1 1=1.0", "0=-1: the layer reads float, this is int"),
        ("Clip conv 1 1 x y 0=0 1=123456789.012345", "at most 15 characters"),
        ("Clip conv 1 1 x y 0=nan", "the layer reads float, this is str"),
        ("Clip conv 1 1 x y 0=-inf", "no number"),
        ("Clip conv 1 1 x y 0=0.1234567891", "more digits than ncnn counts"),
        ("Permute conv 1 1 x y 0=4294967296", "no integer of 32 bits"),
        ("Clip conv 1 1 x y 0=0.5 0=0.5", "parameter 0 stands twice"),
        ("Clip conv 1 1 x y 7=1", "no such parameter"),
        ("Clip conv 1 1 x y 0 =1", "not id=value"),
        ("Clip conv 1 1 x y z", "not id=value"),
        ("Concat conv 2 1 x", "2 inputs and 1 outputs are announced"),
        ("Convolution conv 1 1 x y -23310=2,0.5", "2 values are announced, 1 follow"),
        ("Convolution conv 1 1 x y -23310=2,0.5,1", "integers and floats in one array"),
        ("Conv conv 1 1 x y", "no layer of ncnn has this type"),
        ("Clip conv 1 1 z y", "input z is written by no layer before"),
        ("Clip conv 1 1 x x", "output x is written twice"),
        (f"Clip conv 1 1 x {'y' * 256}", "more than 255 bytes"),
        (f'Interp conv 1 1 x y 9="{"w" * 241}"', "at most 255 characters"),
    ],
)
def test_a_line_that_ncnn_would_misread_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^\w+ conv: .*{reason}"):
        read_param(_text("Input a 0 1 x", line))


def test_a_blob_with_two_readers_is_refused() -> None:
    with pytest.raises(ValueError, match="Clip two: input x has another reader already, without a Split"):
        read_param(_text("Input a 0 1 x", "Clip one 1 1 x y", "Clip two 1 1 x z"))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "line 1 is ''"),
        ("7767516\n1 1\nInput a 0 1 x\n", "line 1 is '7767516'"),
        ("7767517\n", "line 2 is not two numbers"),
        ("7767517\n1\nInput a 0 1 x\n", "line 2 is not two numbers"),
        ("7767517\n2 1\nInput a 0 1 x\n", "2 layers are announced, 1 follow"),
        ("7767517\n1 2\nInput a 0 1 x\n", "2 blobs are announced, 1 follow"),
        ("7767517\n1 1\nInput a 0\n", "not a layer, its name and two counts: 'Input a 0'"),
    ],
)
def test_a_broken_head_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_param(text)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("Convolution conv 1 1 x y 0=3 1=1 6=4", "4 weights do not fill 3 x . x 1 x 1"),
        ("Convolution conv 1 1 x y 0=2 1=1", "0 weights do not fill"),
        ("ConvolutionDepthWise conv 1 1 x y 0=3 1=1 6=6 7=2", "3 outputs in 2 groups"),
        ("ConvolutionDepthWise conv 1 1 x y 0=2 1=1 6=2 7=2 8=3", "int8_scale_term 3"),
        ("PReLU conv 1 1 x y", "slope has shape .0,., and ncnn loads nothing empty"),
        ("Embed conv 1 1 x y 0=2 1=3 3=7", "7 weights do not fill 3 x 2"),
        ("Gemm conv 1 1 x y 5=1 8=2 9=2 18=400", "weights in blocks are not read here"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^\w+ conv: {reason}"):
        read_bin(read_param(_text("Input a 0 1 x", line)), bytes(64))


WEIGHTS = bytes(4) + np.ones(6, "<f4").tobytes()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "Convolution conv: the weights end at byte 0, inside weight"),
        (WEIGHTS[:-1], "Convolution conv: the weights end at byte 27, inside bias"),
        (WEIGHTS + bytes(4), "4 bytes are left behind the last layer's weights"),
        (
            0x000D4B38.to_bytes(4, "little") + WEIGHTS[-12:],
            "Convolution conv: INT8 weights without their scales",
        ),
    ],
)
def test_a_bin_that_does_not_fit_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_bin(read_param(_text("Input a 0 1 x", CONVOLUTION)), data)


def test_padding_is_zero() -> None:
    layers = read_param(_text("Input a 0 1 x", "Convolution conv 1 1 x y 0=1 1=1 6=1"))
    tag = 0x01306B47.to_bytes(4, "little")
    read_bin(layers, tag + np.float16(1.5).tobytes() + bytes(2))
    assert layers[1].weights["weight"].tolist() == [[[[1.5]]]]
    with pytest.raises(ValueError, match="Convolution conv: weight is followed by bytes that are not zero"):
        read_bin(layers, tag + np.float16(1.5).tobytes() + b"\0\1")


def test_kinds_of_parameters() -> None:
    assert kinds("BatchNorm") == {0: "", 1: "f", 30: "a", 31: ""}
