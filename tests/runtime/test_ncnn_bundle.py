"""What lies beside a network of ncnn: the description, the C++ example and the README, with the network's own values."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.bundle.literals import c_string
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.ncnn.bundle.describe import convolutions
from onnx_lathe.runtime.targets.ncnn.bundle.example import example
from onnx_lathe.runtime.targets.ncnn.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from tests.support import cpp
from tests.support.builders import build, random
from tests.support.house import ROOT

pytest.importorskip("ncnn")
IMAGENET = "mean=123.7,116.3,103.5 std=58.4,57.1,57.4"
FILES = ("param", "bin", "json", "example.cpp", "README.md")


def small(folder: Path) -> Path:
    """Two convolutions of 3 x 3, one of which steps, and names that C++ and JSON have to escape."""
    text = """(float[N, 3, 16, 16] image) => (float[N, 8, 7, 7] map, float[N, 8] "scores") {
    a = Conv <pads = [1, 1, 1, 1]> (image, v)  b = Relu(a)  map = Conv <strides = [2, 2]> (b, w)
    g = GlobalAveragePool(map)  scores = Flatten(g) }""".replace('"', "")
    model = build(text, v=random(8, 3, 3, 3), w=random(8, 8, 3, 3))
    model.graph.node[0].name = 'conv "ä" \\1?'
    onnx.save(model, folder / "small.onnx")
    return folder / "small.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The folder of a network that was built with preprocessing."""
    target = f'ncnn(preprocess="{IMAGENET} resize=20 crop=16")'
    assert onnx_lathe.build(small(tmp_path), target, tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def described(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "model.ncnn.json").read_text()))


def test_the_description_has_ports_pixels_convolutions_hashes_and_versions(bundle: Path) -> None:
    found = described(bundle)
    jsonschema.validate(found, json.loads((ROOT / "docs" / "model.schema.json").read_text()))
    assert [port["name"] for port in found["inputs"]] == ["image"]
    assert [port["tensor"] for port in found["outputs"]] == ["map", "scores"]
    pixels = found["preprocessing"]
    assert pixels["channels"] == "RGB"
    np.testing.assert_allclose(pixels["mean"], [123.7, 116.3, 103.5])
    np.testing.assert_allclose(pixels["norm"], [1 / 58.4, 1 / 57.1, 1 / 57.4])
    assert (pixels["resize"], pixels["crop"]) == (20, [16, 16])
    (convolution,) = found["choices"]["convolutions"]
    assert (convolution["node"], convolution["channels"]) == ('conv "ä" \\1?', [3, 8])
    for kind in ("param", "bin"):
        content = (bundle / f"model.ncnn.{kind}").read_bytes()
        said = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert found["files"][f"model.ncnn.{kind}"] == said
    assert found["versions"]["lathe"] == onnx_lathe.__version__
    assert found["verified"]["relative_error"] <= found["verified"]["allowed"]


def test_the_run_of_a_recipe_hands_its_preprocessing_on(
    lenet5: Path, small_mnist: Path, tmp_path: Path
) -> None:
    data = ["--train", f"{small_mnist}:train", "--eval", f"{small_mnist}:test", "--preprocess", "scale=1/255"]
    arguments = [str(lenet5), "--passes", "fold", *data, "--target", "ncnn", "--no-latency", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = described(tmp_path / "out")["preprocessing"]
    assert found["channels"] == "GRAY"
    np.testing.assert_allclose(found["norm"], [1 / 255])
    example = (tmp_path / "out" / "model.ncnn.example.cpp").read_text()
    assert "PIXEL_RGBA2GRAY, width, height" in example
    assert "const float norm[] = {0.00392156863f};" in example
    readme = (tmp_path / "out" / "model.ncnn.README.md").read_text()
    assert "| 0 | 0.00392156863 |" in readme


def test_what_is_listed_is_there_and_no_placeholder_is_left(bundle: Path) -> None:
    assert {path.name for path in bundle.glob("model.ncnn.*")} == {f"model.ncnn.{name}" for name in FILES}
    for name in FILES[2:]:
        text = (bundle / f"model.ncnn.{name}").read_text()
        assert not re.search(r"(?<!\$)\$[a-z_]+|\$\{[a-z_]+\}", text.replace("$ANDROID_NDK", ""))
    report = json.loads((bundle / "report.json").read_text())
    assert sorted(report["targets"][0]["files"]) == sorted(f"model.ncnn.{name}" for name in FILES)


def test_without_a_bundle_the_description_stays(tmp_path: Path) -> None:
    assert onnx_lathe.build(small(tmp_path), "ncnn(bundle=false)", tmp_path / "out").exit_code == 0
    assert {path.name for path in (tmp_path / "out").glob("model*")} == {
        f"model.ncnn.{kind}" for kind in FILES[:3]
    }


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
@pytest.mark.skipif(bool(cpp.missing()), reason=cpp.missing() or "-")
def test_the_example_compiles_without_a_warning(bundle: Path, standard: str) -> None:
    assert not cpp.compile_errors(bundle / "model.ncnn.example.cpp", standard)


@pytest.mark.parametrize(
    "preprocess", ["", IMAGENET, f"{IMAGENET} resize=24x20 crop=16x16", "scale=1/255 crop=16"]
)
@pytest.mark.skipif(bool(cpp.missing()), reason=cpp.missing() or "-")
def test_the_example_compiles_whatever_becomes_of_pixels(preprocess: str, tmp_path: Path) -> None:
    target = f'ncnn(preprocess="{preprocess}")'
    assert onnx_lathe.build(small(tmp_path), target, tmp_path / "out").exit_code == 0
    assert not cpp.compile_errors(tmp_path / "out" / "model.ncnn.example.cpp")


STUB = """#include <cstddef>
namespace ncnn {
struct Option { int num_threads; bool use_vulkan_compute, use_fp16_packed, use_fp16_storage, use_fp16_arithmetic,
    use_winograd_convolution, use_winograd23_convolution, use_winograd43_convolution, use_winograd63_convolution; };
struct Mat { int w, h, d, c; size_t cstep, elemsize; void* data; void create(int, int = 1, int = 1, int = 1) {} };
struct Extractor { int input(const char*, const Mat&) { return 0; } int extract(const char*, Mat&, int = 0) { return 0; }
    void set_light_mode(bool) {} };
struct Net { Option opt; int load_param(const char*) { return 0; } int load_model(const char*) { return 0; }
    int load_param_mem(const char*) { return 0; } Extractor create_extractor() const { return Extractor(); } };
}"""
READING = """#define MODEL_NO_MAIN
#include "model.ncnn.example.cpp"
int main() {
    int whole[] = {7, -2, 0, 0, 1 << 20, 3, 0, 0};  // two channels of two values, at multiples of 16 bytes
    float real[] = {0.5f, -2.f, 0, 0, 3.f, 4.f, 0, 0};
    ncnn::Mat mat = {2, 1, 1, 2, 4, 4, whole};
    for (size_t i = 0; i < model::OUTPUTS.size(); i++) {
        mat.data = model::OUTPUTS[i].integers ? (void*)whole : (void*)real;
        for (float value : model::values(mat, model::OUTPUTS[i])) std::printf("%.9g ", value);
    }
}"""


@pytest.mark.skipif(cpp.compiler() is None, reason="there is no C++ compiler")
def test_the_example_reads_an_output_as_what_its_blob_holds(tmp_path: Path) -> None:
    """Rows of a table are held as integers, the answers of ArgMax as floats: both are INT64 in the model."""
    element = onnx.TensorProto.INT64
    held = [
        Port(name, name, (1, 2, 2), (1, 2), element, (1, 2, 2), floats)
        for name, floats in (("rows", False), ("answers", True))
    ]
    text = example("t", ("a", "b"), "x86", [], held, [], "none")
    (tmp_path / "model.ncnn.example.cpp").write_text(text)
    (tmp_path / "net.h").write_text(STUB)
    (tmp_path / "main.cpp").write_text(READING)
    command = [cpp.compiler() or "", "-std=c++11", f"-I{tmp_path}", "-o", str(tmp_path / "main")]
    subprocess.run([*command, str(tmp_path / "main.cpp")], timeout=120, check=True)
    done = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["7", "-2", "1048576", "3", "0.5", "-2", "3", "4"]


def test_names_are_escaped_for_c() -> None:
    assert c_string('a"b\\?ä') == '"a\\042b\\134\\077\\303\\244"'


def port(*shape: int | None, element: int = onnx.TensorProto.FLOAT) -> Port:
    return Port("image", "image", shape, tuple(range(1, len(shape))), element, (None, *shape[1:]))


@pytest.mark.parametrize(
    "text, inputs, reason",
    [
        ("", [port(1, 3, 8, 8)], "no mean, std or scale is given"),
        ("resize=8", [port(1, 3, 8, 8)], "no mean, std or scale is given"),
        ("scale=1/255", [port(1, 3, 8, 8), port(1, 4)], "the network has 2 inputs"),
        ("scale=1/255", [port(1, 8, 8, 3)], "is no picture with its channels first"),
        ("scale=1/255", [port(1, 3, 8, 8, element=onnx.TensorProto.INT64)], "does not take float values"),
        ("scale=1/255 resize=8 crop=8x20", [port(1, 3, 8, 20)], "adds black"),
    ],
)
def test_pixels_that_ncnn_cannot_make_say_why(text: str, inputs: list[Port], reason: str) -> None:
    found = pixels_of(text, inputs)
    assert isinstance(found, str)
    assert reason in found


def test_an_open_size_keeps_the_pictures_size_and_one_value_serves_all_channels() -> None:
    found = pixels_of("mean=127.5 std=127.5", [port(1, 3, None, None)])
    assert found == Pixels("image", "RGB", [127.5] * 3, [1 / 127.5] * 3, None, None)


def test_values_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="gives 3 values per channel, but the input has 1 channels"):
        pixels_of(IMAGENET, [port(1, 1, 8, 8)])


def test_a_wrong_option_is_one_line(lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", str(lenet5), "--out", str(tmp_path), "--target"]
    assert main([*build, 'ncnn(preprocess="scal=1/255")']) == 2
    assert "has no option 'scal'; did you mean 'scale'" in capsys.readouterr().err


def test_an_algorithm_that_is_written_down_is_described() -> None:
    params = {0: 16, 1: 3, 11: 3, 2: 1, 12: 1, 3: 1, 13: 1, 6: 16 * 8 * 9}
    plain = Layer("Convolution", "one", ["x"], ["a"], dict(params), nodes=("conv1",))
    direct = Layer("Convolution", "two", ["a"], ["b"], params | {31: 64}, nodes=("conv2",))
    strided = Layer("Convolution", "three", ["b"], ["c"], params | {3: 2}, nodes=("conv3",))
    grouped = Layer("ConvolutionDepthWise", "four", ["c"], ["d"], params | {7: 8}, nodes=("conv4",))
    other = Layer("Convolution", "five", ["d"], ["e"], dict(params), nodes=("resize",))
    names = {"conv1": "Conv", "conv2": "Conv", "conv3": "Conv", "conv4": "Conv", "resize": "Resize"}
    nodes = [onnx.helper.make_node(op, ["x"], ["y"], name=name) for name, op in names.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    wide = Layer("Convolution", "six", ["e"], ["f"], params | {31: 1}, nodes=("conv1",))
    found = convolutions([plain, direct, strided, grouped, other, wide], model, "arm64-fp16")
    assert [(one.node, one.inputs, one.outputs, one.own, one.algorithm) for one in found] == [
        ("conv1", 8, 16, "winograd63", None),
        ("conv2", 8, 16, "winograd63", "direct"),
    ]
