"""What of a network is said to run on the GPU beside a DLA core, and how that is shown."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.jetson.device.showing import on_gpu
from onnx_lathe.runtime.targets.jetson.fallbacks import FLOAT, count_layers, fallbacks
from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from tests.support import quantized
from tests.support.builders import build
from tests.support.jetson import write


def half(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


def reasons(text: str, **constants: np.ndarray) -> dict[str, str]:
    """Operator -> reason, of nodes that are named by their operators."""
    model = build(text, **constants)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}.{index}"
    return {node.partition(".")[0]: reason for node, reason in fallbacks(model)}


NET = """(float16[1, 8, 16, 16] x) => (float16[1, 10] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)  b = Relu(a)  c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
    d = GlobalAveragePool(c)  e = Flatten(d)  y = Gemm(e, v) }"""


def test_a_classifier_in_float16_leaves_its_mean_and_its_flattening_to_the_gpu() -> None:
    """As trtexec of TensorRT 10.3 said of a ResNet-50 on an AGX Orin."""
    found = reasons(NET, w=half(8, 8, 3, 3), v=half(8, 10))
    assert found == {
        "GlobalAveragePool": "DLA has no mean over whole pictures (AVG Reduce)",
        "Flatten": "DLA does not reshape (SHUFFLE)",
    }


def test_float32_is_not_for_dla() -> None:
    text = NET.replace("float16", "float")
    found = reasons(text, w=half(8, 8, 3, 3).astype(np.float32), v=half(8, 10).astype(np.float32))
    assert found["Conv"] == found["Relu"] == found["MaxPool"] == found["Gemm"] == FLOAT


def test_layers_between_pairs_are_for_dla_from_tensorrt_11_on() -> None:
    found = dict(fallbacks(quantized.lenet(codebook=False)))
    assert found["conv1"].startswith("with JetPack 6 all 3 layers between Q/DQ pairs run on the GPU")
    assert not {"conv2", "relu1", "pool1"} & set(found)


def test_each_layer_is_told_why_it_is_not_on_dla() -> None:
    model = quantized.lenet(codebook=False)
    said = Jetson().layers(model, Jetson.Config(dla=0))
    assert [(layer.node, layer.int8, layer.reason) for layer in said] == [
        (node, True, "on the GPU with JetPack 6: DLA takes no Q/DQ pairs before TensorRT 11.4.1")
        for node in ("conv1", "conv2", "fc")
    ]
    assert not any(layer.reason for layer in Jetson().layers(model, Jetson.Config()))
    plain = Jetson().layers(quantized.lenet(codebook=False, int8=False), Jetson.Config(dla=0))
    assert all(layer.reason.endswith(f"; on the GPU, not on DLA: {FLOAT}") for layer in plain)


def one(call: str, inputs: str = "float16[1, 8, 16, 16] x", **constants: np.ndarray) -> str:
    """Why one node is left to the GPU; empty if it is not."""
    found = reasons(f"({inputs}) => (float16[a, b, c, d] y) {{ y = {call} }}", **constants)
    return next(iter(found.values()), "")


@pytest.mark.parametrize(
    ("call", "constants", "reason"),
    [
        ("Conv (x, w)", {"w": half(4, 8, 3, 3)}, ""),
        ("Conv (x, w)", {"w": half(4, 8, 33, 1)}, "its kernel is larger than 32"),
        ("Conv <strides = [9, 1]> (x, w)", {"w": half(4, 8, 3, 3)}, "its stride is larger than 8"),
        ("ConvTranspose (x, w)", {"w": half(8, 4, 3, 3)}, ""),
        ("ConvTranspose <pads = [1, 1, 1, 1]> (x, w)", {"w": half(8, 4, 3, 3)}, "with padding"),
        ("ConvTranspose <group = 2> (x, w)", {"w": half(8, 4, 3, 3)}, "with groups or dilation"),
        ("AveragePool <kernel_shape = [8, 8]> (x)", {}, ""),
        ("AveragePool <kernel_shape = [9, 8]> (x)", {}, "its window 9x8 is larger than 8"),
        ("MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", {}, "a pooling with dilation"),
        ("Concat <axis = 1> (x, x)", {}, ""),
        ("Concat <axis = 2> (x, x)", {}, "it joins along axis 2; DLA joins channels"),
        ("Concat <axis = -3> (x, x)", {}, ""),
        ("Softmax <axis = 1> (x)", {}, ""),
        ("Mul (x, w)", {"w": half(1, 8, 1, 1)}, ""),
        ("Erf (x)", {}, "DLA has no Erf"),
        ("Transpose <perm = [0, 2, 3, 1]> (x)", {}, "DLA has no Transpose"),
        ("Resize <mode = \"cubic\"> (x, , s)", {"s": np.array([1, 1, 2, 2], np.float32)}, "DLA does not resize by cubic"),
        ("Resize <mode = \"nearest\"> (x, , s)", {"s": np.array([1, 1, 2, 2], np.float32)}, ""),
    ],
)  # fmt: skip
def test_one_operator(call: str, constants: dict, reason: str) -> None:
    said = one(call, **constants)
    assert reason in said
    assert bool(reason) == bool(said)


def test_more_than_four_dimensions() -> None:
    found = reasons("(float16[1, 8, 4, 4, 4] x) => (float16[1, 8, 4, 4, 4] y) { y = Relu(x) }")
    assert found == {"Relu": "its result has 5 dimensions; DLA takes up to 4"}
    found = reasons(
        "(float16[1, 8, 4, 4, 4] x) => (float16[a, b, c, d, e] y) { y = Conv(x, w) }", w=half(4, 8, 3, 3, 3)
    )
    assert found == {"Conv": "its kernel has 3 dimensions; DLA takes 2"}


def test_they_are_in_the_report_the_description_and_the_readme(tmp_path: Path) -> None:
    model = build(NET, w=half(8, 8, 3, 3), v=half(8, 10))
    for node in model.graph.node:
        node.name = node.op_type.lower()
    said = Jetson().check(model, Jetson.Config(dla=0))
    assert ("flatten", "on the GPU, not on DLA: DLA does not reshape (SHUFFLE)") in said
    assert Jetson().check(model, Jetson.Config()) == []
    artifact, bundle = write(tmp_path, model, dla=1)
    described = json.loads((bundle / "bundle.json").read_text())["dla"]
    assert described["core"] == 1
    assert described["layers"] == count_layers(model) == 6
    assert [entry["node"] for entry in described["on_gpu"]] == ["globalaveragepool", "flatten"]
    assert artifact.details["dla"] == described
    text = (bundle / "README.md").read_text()
    assert "| `flatten` | DLA does not reshape (SHUFFLE) |" in text
    assert "This bundle is for DLA core 1: of 6 nodes" in text


def test_many_nodes_of_one_reason_are_counted(tmp_path: Path) -> None:
    text = (
        "(float[1, 4] x) => (float[1, 4] y) { "
        + " ".join(f"t{i} = Erf({'x' if not i else f't{i - 1}'})" for i in range(11))
        + " y = Erf(t10) }"
    )
    model = build(text)
    for index, node in enumerate(model.graph.node):
        node.name = f"erf{index}"
    _, bundle = write(tmp_path, model, dla=0)
    assert "`erf6`, `erf7` and 4 more | DLA has no Erf |" in (bundle / "README.md").read_text()


def test_a_large_model_is_judged_by_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are not copied: shape inference takes less than 2 GB."""
    seen = []
    infer = onnx.shape_inference.infer_shapes

    def watched(model: onnx.ModelProto) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return infer(model)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    model = build("(float16[1, 2048] x) => (float16[1, 2048] y) { y = Gemm(x, w) }", w=half(2048, 2048))
    assert fallbacks(model) == []
    assert seen[0] < 4096


def test_what_the_builder_says_on_the_device() -> None:
    assert on_gpu([]) == "DLA takes all layers"
    assert on_gpu(["a", "b"]) == "layers on the GPU, not on DLA: a, b"
    assert on_gpu([str(n) for n in range(14)]).endswith("10, 11 and 2 more (model.engine.json)")
