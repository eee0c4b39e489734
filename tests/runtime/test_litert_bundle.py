"""What lies beside a .tflite file: its texts hold the network's own values, and the C++ among them compiles and computes."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.bundle.pixels import Pixels, pixels_of
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.bundle.verify_script import as_file
from onnx_lathe.runtime.targets.bundle.writing import Written
from onnx_lathe.runtime.targets.litert.bundle import cpp as texts
from onnx_lathe.runtime.targets.litert.bundle import kotlin
from onnx_lathe.runtime.targets.litert.bundle.writing import bundle
from tests.support import cpp
from tests.support.builders import build, random
from tests.support.house import ROOT

IMAGE = Port(
    "image", "image", (1, 8, 6, 3), "float32", (0, 2, 3, 1), "float32", (1, 3, 8, 6), (None, 3, 8, 6)
)
QUANTIZED = replace(IMAGE, type="int8", scale=0.5, zero_point=-3)
SCORES = Port('sc"$0', 'sc"$0', (1, 4), "float32", (0, 1), "float32", (1, 4), (None, 4))
IMAGENET = "mean=123.7,116.3,103.5 std=58.4,57.1,57.4"
SHIPPED = ("json", "interpreter.kt", "compiled.kt", "interpreter.cpp", "compiled.cpp", "README.md")
SCHEMA = json.loads((ROOT / "docs" / "model.schema.json").read_text())


def written(
    folder: Path, preprocess: str = "", image: Port = IMAGE, examples: Examples | None = None
) -> Written:
    (folder / "model.tflite").write_bytes(b"TFL3")
    pixels = pixels_of(preprocess, [image])
    return Written(
        "litert", [folder / "model.tflite"], [image], [SCORES], pixels, {}, ["cat", 'd"o$9'], None, examples
    )


@pytest.mark.parametrize("preprocess", ["", f"{IMAGENET} resize=9 crop=8x6"])
def test_all_files_are_there_and_name_this_network(preprocess: str, tmp_path: Path) -> None:
    made = bundle(written(tmp_path, preprocess, QUANTIZED))
    assert {path.name for path in made} == {f"model.litert.{ending}" for ending in SHIPPED}
    jsonschema.validate(json.loads((tmp_path / "model.litert.json").read_text()), SCHEMA)
    for ending in SHIPPED[1:]:
        text = (tmp_path / f"model.litert.{ending}").read_text()
        assert not re.search(r"@[a-z]+\b|\$[a-z_]+", text), ending
        assert "model.tflite" in text
    for ending, scale, name in (
        ("kt", "0.5f, -3)", r'"sc\u0022\u00240"'),
        ("cpp", "Type::Int8, 0.5f, -3}", r'"sc\042$0"'),
    ):
        for kind in ("interpreter", "compiled"):
            text = (tmp_path / f"model.litert.{kind}.{ending}").read_text()
            assert scale in text
            assert name in text
            assert ("58.4" in text or "0.0171232877f" in text) == bool(preprocess)
    readme = (tmp_path / "model.litert.README.md").read_text()
    assert "| input | `image` | `image` | 1 x 8 x 6 x 3 | int8: real = 0.5 * (q - -3) |" in readme
    assert "The files were not run here." in readme


def source(kind: str, preprocess: str = "", image: Port = IMAGE, outputs: Sequence[Port] = (SCORES,)) -> str:
    made = texts.interpreter if kind == "interpreter" else texts.compiled
    return made("t", "model.tflite", [image], outputs, ["cat"], pixels_of(preprocess, [image]))


needs_litert = pytest.mark.skipif(bool(cpp.missing_litert()), reason=cpp.missing_litert() or "-")


@needs_litert
@pytest.mark.parametrize(
    "kind, standard", [("interpreter", "c++11"), ("interpreter", "c++20"), ("compiled", "c++17")]
)
@pytest.mark.parametrize(
    "preprocess", ["", IMAGENET, f"{IMAGENET} resize=24x20 crop=8x6", "scale=1/255 resize=9 crop=8x6"]
)
def test_it_compiles_with_the_headers_of_litert(
    kind: str, standard: str, preprocess: str, tmp_path: Path
) -> None:
    (tmp_path / "example.cpp").write_text(source(kind, preprocess, QUANTIZED))
    assert not cpp.litert_compile_errors(tmp_path / "example.cpp", standard)


STUB = r"""#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>
// doubles its only input, which holds bytes of any type; loads nothing but model.tflite
typedef enum { kTfLiteOk = 0, kTfLiteError = 1 } TfLiteStatus;
struct TfLiteTensor { std::vector<unsigned char> bytes; };
struct TfLiteModel { int unused; };
struct TfLiteInterpreterOptions { int threads; };
struct TfLiteInterpreter { TfLiteTensor in, out; };
inline TfLiteModel* TfLiteModelCreateFromFile(const char* path)
{
    const std::string text = path;
    return text.size() > 12 && text.substr(text.size() - 12) == "model.tflite" ? new TfLiteModel() : nullptr;
}
inline void TfLiteModelDelete(TfLiteModel* model) { delete model; }
inline TfLiteInterpreterOptions* TfLiteInterpreterOptionsCreate() { return new TfLiteInterpreterOptions(); }
inline void TfLiteInterpreterOptionsDelete(TfLiteInterpreterOptions* options) { delete options; }
inline void TfLiteInterpreterOptionsSetNumThreads(TfLiteInterpreterOptions* options, int32_t threads) { options->threads = threads; }
inline TfLiteInterpreter* TfLiteInterpreterCreate(const TfLiteModel*, const TfLiteInterpreterOptions*) { return new TfLiteInterpreter(); }
inline void TfLiteInterpreterDelete(TfLiteInterpreter* interpreter) { delete interpreter; }
inline TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter* one)
{
    if (one->in.bytes.empty()) one->in.bytes.resize(SIZE);
    return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterResizeInputTensor(TfLiteInterpreter* one, int32_t, const int* sizes, int32_t count)
{
    size_t size = SIZE;
    if (count > 0) size *= (size_t)sizes[0];
    one->in.bytes.resize(size);
    return kTfLiteOk;
}
inline TfLiteTensor* TfLiteInterpreterGetInputTensor(TfLiteInterpreter* one, int32_t) { return &one->in; }
inline const TfLiteTensor* TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter* one, int32_t) { return &one->out; }
inline size_t TfLiteTensorByteSize(const TfLiteTensor* tensor) { return tensor->bytes.size(); }
inline TfLiteStatus TfLiteTensorCopyFromBuffer(TfLiteTensor* tensor, const void* data, size_t size)
{
    if (size != tensor->bytes.size()) return kTfLiteError;
    std::memcpy(tensor->bytes.data(), data, size);
    return kTfLiteOk;
}
inline TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor* tensor, void* data, size_t size)
{
    std::memcpy(data, tensor->bytes.data(), size);
    return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter* one)
{
    one->out.bytes = one->in.bytes;
    return kTfLiteOk;
}
"""
DRIVER = r"""#define MODEL_NO_MAIN
#include "model.litert.interpreter.cpp"
int main()
{
    model::Network network;
    if (network.load("nothing.bin") || !network.load("somewhere/model.tflite", 3)) return 1;
    std::vector<unsigned char> pixels;
    for (int i = 0; i < 4 * WIDTH * HEIGHT; i++) pixels.push_back((unsigned char)(i * 37 % 256));
    std::vector<model::Bytes> outputs;
    if (network.run({model::Bytes(3)}, outputs) || network.run({}, outputs)) return 2;
    if (!network.run({model::from_rgba(pixels.data(), WIDTH, HEIGHT)}, outputs)) return 3;
    for (float value : model::reals(model::OUTPUTS[0], outputs[0])) std::printf("%.9g ", value);
    if (!network.resize(0, {2, 8, 6, 3})) return 4;
    if (!network.run({model::Bytes(2 * SIZE)}, outputs) || outputs[0].size() != 2 * SIZE) return 5;
}
"""


def computed(folder: Path, image: Port, preprocess: str, height: int, width: int) -> np.ndarray:
    """What the example's from_rgba, run and reals make of a picture, in a process of its own, by a stand-in for the C API
    that hands its input out.
    """
    size = int(np.prod([one or 1 for one in image.shape])) * np.dtype(image.type).itemsize
    include = folder / "tensorflow" / "lite" / "c"
    include.mkdir(parents=True)
    (include / "c_api.h").write_text(STUB)
    (folder / "model.litert.interpreter.cpp").write_text(source("interpreter", preprocess, image, [image]))
    (folder / "main.cpp").write_text(DRIVER)
    defined = {"SIZE": size, "WIDTH": width, "HEIGHT": height}
    command = [cpp.compiler() or "", "-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    command += [f"-D{name}={value}" for name, value in defined.items()]
    subprocess.run([*command, "-o", str(folder / "main"), str(folder / "main.cpp")], timeout=120, check=True)
    done = subprocess.run([str(folder / "main")], capture_output=True, text=True, timeout=20, check=True)
    return np.array([float(word) for word in done.stdout.split()], np.float32).reshape(image.shape)


def picture(height: int, width: int) -> np.ndarray:
    """RGB; the driver makes the same."""
    values = np.arange(4 * height * width) * 37 % 256
    return values.reshape(height, width, 4)[..., :3].astype(np.uint8)


needs_compiler = pytest.mark.skipif(cpp.compiler() is None, reason="there is no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("image", [IMAGE, QUANTIZED], ids=["float", "int8"])
def test_pixels_become_the_input_that_the_description_says(image: Port, tmp_path: Path) -> None:
    """A picture that has the network's size already, so that nothing is interpolated."""
    got = computed(tmp_path, image, IMAGENET, 8, 6)
    mean, std = np.float32([123.7, 116.3, 103.5]), np.float32([58.4, 57.1, 57.4])
    real = ((picture(8, 6) - mean) / std)[np.newaxis].astype(np.float32)
    if image.is_quantized:
        held = as_file(real.transpose(0, 3, 1, 2), image.as_json())
        real = (held.astype(np.float32) + 3) * np.float32(0.5)
    np.testing.assert_allclose(got, real, atol=1e-5)


@needs_compiler
def test_a_larger_picture_is_resized_and_cut_as_pillow_does_without_smoothing(tmp_path: Path) -> None:
    """Twice as large: each pixel is the mean of four, whatever the filter's width; the middle is what is kept."""
    got = computed(tmp_path, IMAGE, "scale=1 resize=8 crop=8x6", 16, 20)
    halved = picture(16, 20).reshape(8, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(got[0], halved[:, 2:8], atol=1e-3)


@needs_compiler
def test_channels_first_and_grey(tmp_path: Path) -> None:
    grey = Port("g", "g", (1, 1, 8, 6), "float32", (0, 1, 2, 3), "float32", (1, 1, 8, 6), (1, 1, 8, 6))
    got = computed(tmp_path, grey, "scale=1", 8, 6)
    np.testing.assert_allclose(got[0, 0], picture(8, 6) @ [0.299, 0.587, 0.114], atol=1e-3)


def test_kotlin_makes_an_input_of_a_picture_where_it_can() -> None:
    made = kotlin.compiled("t", "m.tflite", [IMAGE], [SCORES], [], pixels_of(IMAGENET, [IMAGE]))
    assert "fun fromBitmap(picture: Bitmap): FloatArray" in made
    assert "values[3 * at + 2] = (blue - mean[2]) * norm[2]" in made
    first = replace(IMAGE, axes=(0, 1, 2, 3), shape=(1, 3, 8, 6))
    made = kotlin.interpreter("t", "m.tflite", [first], [SCORES], [], pixels_of(IMAGENET, [first]))
    assert "values[2 * rows * columns + at] = (blue - mean[2]) * norm[2]" in made
    made = kotlin.interpreter("t", "m.tflite", [IMAGE], [SCORES], [], "there are two inputs */")
    assert "Bitmap" not in made
    assert "there are two inputs * /" in made


@pytest.mark.parametrize("kind", ["interpreter", "compiled"])
@pytest.mark.parametrize(
    "preprocess", ["", IMAGENET, "scale=1 resize=9 crop=8x6", "scale=1 resize=16x12 crop=8x6"]
)
def test_kotlin_has_pairs_of_brackets(kind: str, preprocess: str) -> None:
    """No compiler of Kotlin is here: what can be seen without one."""
    made = getattr(kotlin, kind)(
        "t", "m.tflite", [QUANTIZED], [SCORES], ["a}"], pixels_of(preprocess, [QUANTIZED])
    )
    bare = re.sub(r'"(\\.|\$\{[^}]*\}|[^"\\])*"|/\*.*?\*/|//[^\n]*', "", made, flags=re.DOTALL)
    stack = []
    for one in re.findall(r"[(){}\[\]]", bare):
        if one in "({[":
            stack.append(one)
        else:
            assert (stack.pop(), one) in (("(", ")"), ("{", "}"), ("[", "]"))
    assert not stack


def test_the_script_verifies_a_file_with_ai_edge_litert_alone(tmp_path: Path) -> None:
    """Of a file that is none, it says so in one line; whole files are the target's tests."""
    pytest.importorskip("ai_edge_litert")
    stored = Examples(
        [({"image": np.zeros((1, 3, 8, 6), np.float32)}, {SCORES.tensor: np.zeros((1, 4), np.float32)})],
        "largest",
        {SCORES.tensor: 1e-4},
        {},
    )
    bundle(written(tmp_path, examples=stored))
    script = tmp_path / "model.litert.verify.py"
    done = subprocess.run(
        [sys.executable, "-I", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("model.tflite: ")
    assert "pip install ai-edge-litert numpy" in (tmp_path / "model.litert.README.md").read_text()


def test_pixels_is_a_value_of_the_description() -> None:
    found = pixels_of(IMAGENET, [QUANTIZED])
    assert isinstance(found, Pixels)
    assert found.made == (8, 6)


def small(folder: Path) -> Path:
    """Two inputs' worth of names, a picture that stays one, and a tail of scores."""
    text = """(float[N, 3, 16, 16] image) => (float[N, 8, 7, 7] map, float[N, 8] scores) {
        a = Conv <pads = [1, 1, 1, 1]> (image, v)  b = Relu(a)  map = Conv <strides = [2, 2]> (b, w)
        g = GlobalAveragePool(map)  scores = Flatten(g) }"""
    onnx.save(build(text, v=random(8, 3, 3, 3), w=random(8, 8, 3, 3)), folder / "small.onnx")
    return folder / "small.onnx"


@pytest.mark.parametrize("options", ["", "layout=nhwc", "storage=float16"])
def test_the_target_writes_a_bundle_that_verifies_itself(options: str, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    target = f'litert(preprocess="{IMAGENET}"{", " + options if options else ""})'
    assert onnx_lathe.build(small(tmp_path), target, tmp_path / "out").exit_code == 0
    out = tmp_path / "out"
    found = json.loads((out / "model.litert.json").read_text())
    jsonschema.validate(found, SCHEMA)
    (image,) = found["inputs"]
    last = options == "layout=nhwc"
    assert image["axes"] == ([0, 2, 3, 1] if last else [0, 1, 2, 3])
    assert image["shape"][1:] == ([16, 16, 3] if last else [3, 16, 16])
    assert image["tensor_shape"][1:] == [3, 16, 16]
    assert found["preprocessing"]["channels"] == "RGB"
    assert "values[3 * at + 2]" in (out / "model.litert.compiled.kt").read_text() or not last
    with np.load(out / found["examples"]["file"]) as stored:
        assert stored["input_0_0"].shape[1:] == (3, 16, 16)
        np.testing.assert_allclose(
            stored["output_0_1"], stored["output_0_0"].mean((2, 3)), rtol=1e-3, atol=1e-5
        )
    command = [sys.executable, "-I", str(out / "model.litert.verify.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["agrees"]
    assert said["in"].startswith("LiteRT, ai-edge-litert ")
    listed = json.loads((out / "report.json").read_text())["targets"][0]["files"]
    assert sorted(listed) == sorted(
        ["model.tflite", *(f"model.litert.{name}" for name in (*SHIPPED, "examples.npz", "verify.py"))]
    )


def test_without_a_bundle_the_file_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    assert onnx_lathe.build(small(tmp_path), "litert(bundle=false)", tmp_path / "out").exit_code == 0
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.tflite"]


def test_integers_of_a_quantized_network_are_described_and_verified(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    np.savez(tmp_path / "data.npz", image=random(16, 3, 16, 16))
    run = [str(small(tmp_path)), "--passes", "int8", "--data", str(tmp_path / "data.npz")]
    asked = [*run, "--target", "litert(io=int8)", "--no-latency", "--no-html", "--quiet"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "model.litert.json").read_text())
    (image,) = found["inputs"]
    assert (image["type"], image["tensor_type"]) == ("int8", "float32")
    assert image["scale"] > 0
    assert {one["measure"] for one in found["examples"]["outputs"].values()} == {"length"}
    assert (
        f"Type::Int8, {image['scale']:.9g}f"
        in (tmp_path / "out" / "model.litert.interpreter.cpp").read_text()
    )
    command = [sys.executable, "-I", str(tmp_path / "out" / "model.litert.verify.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_finds_a_quantized_network_that_computes_another_output(tmp_path: Path) -> None:
    """Half of an output's length would be allowed in the comparison at the build, where steps are counted as well."""
    pytest.importorskip("ai_edge_litert")
    np.savez(tmp_path / "data.npz", image=random(16, 3, 16, 16))
    run = [str(small(tmp_path)), "--passes", "int8", "--data", str(tmp_path / "data.npz")]
    asked = [*run, "--target", "litert", "--no-latency", "--no-html", "--quiet"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    table = tmp_path / "out" / "model.litert.json"
    found = json.loads(table.read_text())
    examples = table.with_name(found["examples"]["file"])
    with np.load(examples) as stored:
        changed = {name: stored[name] * (0.8 if name.startswith("output") else 1) for name in stored.files}
    np.savez(examples, **changed)
    found["examples"]["sha256"] = hashlib.sha256(examples.read_bytes()).hexdigest()
    table.write_text(json.dumps(found))
    command = [sys.executable, "-I", str(table.with_name("model.litert.verify.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
