"""ONNX -> module -> no training -> ONNX is the same in every bit, whatever the module was asked to train."""

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.metadata import SPARSE, format_sparse
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.training_options import take_over
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.prune.prune import Prune
from tests.support import quantized
from tests.support.builders import build, random
from tests.support.codebooks import share, two_layers
from tests.support.models import MODELS, load_foreign, shipped_with_onnx

torch = pytest.importorskip("torch")
from onnx_lathe.protocols import TrainResult  # noqa: E402
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402

CHOICES = [{}, {"learn_scales": True, "train_normalization": True}]


def tensors(model: onnx.ModelProto) -> dict[str, tuple[np.dtype, tuple[int, ...], bytes]]:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def assert_round_trip(model: onnx.ModelProto, least: int = 1) -> set[str]:
    """Returns the names of what could have been trained: `least` of them at least."""
    before, names = tensors(model), set()
    for choices in CHOICES:
        values = GraphModule(copy.deepcopy(model), **choices).values()
        for name, value in values.items():
            assert (value.dtype, value.shape, value.tobytes()) == before[name], name
        graph = import_model(model)
        assert take_over(graph, TrainResult(values, {}), PassReport()) == {}
        written = copy.deepcopy(model)
        for tensor in written.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        assert tensors(written) == before
        assert tensors(export_model(graph)) == tensors(export_model(import_model(model)))
        names |= values.keys()
    assert len(names) >= least
    return names


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/model.onnx")), ids=lambda path: path.parent.name)
def test_the_models_of_this_project(path: Path) -> None:
    model = onnx.load(path)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert len(assert_round_trip(model)) == len(floats)


@pytest.mark.slow
@pytest.mark.parametrize("path", shipped_with_onnx("light/*.onnx"), ids=lambda path: path.stem)
def test_models_of_others(path: Path) -> None:
    made_at_run_time = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")
    assert_round_trip(load_foreign(path), 0 if path.stem in made_at_run_time else 20)


@pytest.mark.parametrize("codebook", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_canonical_forms(codebook: bool, int8: bool) -> None:
    names = assert_round_trip(quantized.lenet(codebook=codebook, int8=int8))
    assert not any("indices" in name or "zero" in name or name.endswith("_q") for name in names)


def test_a_pruned_network_with_codebooks() -> None:
    model, _ = share(two_layers(), (Prune, {"sparsity": 0.7, "min_size": 1}), bits=3)
    assert SPARSE in {entry.key for entry in model.metadata_props}
    assert len(assert_round_trip(model)) == 3


def test_a_two_of_four_pattern() -> None:
    w = random(8, 8)
    w[np.arange(8), np.argsort(np.abs(w), axis=1)[:, :4].T] = 0
    model = build("(float[n, 8] x) => (float[n, 8] y) { y = MatMul(x, w) }", w=w)
    model.metadata_props.add(key=SPARSE, value=format_sparse({"w": "2:4"}))
    assert assert_round_trip(model) == {"w"}


BITS = {
    np.float32: (np.uint32, [0x7F800001, 0x7FC12345, 0xFFA00000, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x80000001]),
    np.float64: (np.uint64, [0x7FF0000000000001, 0xFFF8000000054321, 0x7FF0000000000000, 0x8000000000000000, 1, 3, 4, 5, 6]),
    np.float16: (np.uint16, [0x7C01, 0x7E12, 0xFD00, 0xFFFF, 0x7C00, 0xFC00, 0x8000, 1, 0x8001]),
    ml_dtypes.bfloat16: (np.uint16, [0x7F81, 0x7FC1, 0xFFA0, 0xFFFF, 0x7F80, 0xFF80, 0x8000, 1, 0x8001]),
}  # fmt: skip
KINDS = {np.float32: "float", np.float64: "double", np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", BITS, ids=KINDS.values())
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_odd_values(dtype: type, sparse: bool) -> None:
    """NaN with a payload, quiet and signalling, infinities, negative zero, and the smallest numbers."""
    integers, patterns = BITS[dtype]
    values = np.array(patterns, integers).view(dtype)
    kind = KINDS[dtype]
    text = f"({kind}[n, 9] x) => ({kind}[n, 9] y) {{ m = MatMul(x, w)  y = Add(m, b) }}"
    weight = np.concatenate([values, np.zeros(9, dtype), np.linspace(-2, 2, 63).astype(dtype)]).reshape(9, 9)
    model = build(text, 17, w=weight, b=values)
    if sparse:
        model.metadata_props.add(key=SPARSE, value=format_sparse({"w": "unstructured", "b": "unstructured"}))
    assert assert_round_trip(model) == {"w", "b"}


def test_an_odd_value_that_training_changed_is_not_brought_back() -> None:
    model = build(
        "(float[n, 2] x) => (float[n, 2] y) { y = MatMul(x, w) }",
        w=np.array([[np.nan, 1], [2, 3]], np.float32),
    )
    module = GraphModule(model)
    with torch.no_grad():
        module.weights()["w"].copy_(torch.tensor([[5.0, np.nan], [6.0, 7.0]]))
    np.testing.assert_array_equal(module.values()["w"], np.array([[5, np.nan], [6, 7]], np.float32))


def test_half_precision_scales_and_statistics() -> None:
    text = """(float16[n, 3] x) => (float16[n, 3] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = BatchNormalization(d, g, b, m, v)
    }"""
    stored = {name: random(3).astype(np.float16) for name in "gbm"} | {
        "v": np.array([1, 6e-8, 65504], np.float16)
    }
    scales = np.array([6e-8, 1.1e-5, 65504], np.float16)
    assert assert_round_trip(build(text, 21, s=scales, z=np.zeros(3, np.int8), **stored)) == {"s", *"gbmv"}
