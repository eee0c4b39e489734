"""codebook: what shares values, how many there are and what they cost; how they begin is for
test_kmeans.py.
"""

import numpy as np
import onnx
import pytest
import torch

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import codebook_of, weights, zeros_of
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.lowering.tensorrt import Lowering
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from tests.support.builders import build, random, run
from tests.support.codebooks import constants, decoded, share, two_layers
from tests.support.int8 import quantize

CONV = "(float[N, 8, 6, 6] x) => (float[N, 30, 4, 4] y) { y = Conv (x, w) }"


def with_zeros(model: onnx.ModelProto, fraction: float = 0.5) -> onnx.ModelProto:
    """The model with the smallest weights of `a` and `b` zero, named in `lathe.sparse`."""
    graph = import_model(model)
    for name in "ab":
        tensor = graph.tensors()[name]
        tensor.values = np.where(
            np.abs(tensor.values) < np.quantile(np.abs(tensor.values), fraction), np.float32(0), tensor.values
        )
    set_sparse_tensors(graph, dict.fromkeys("ab", "unstructured"))
    return export_model(graph)


def test_layers_have_numbers_of_values_of_their_own() -> None:
    after, _ = share(two_layers(), bits=3, layers={"*": 2, "b": 5}, layer_centroids={"Gemm*": 3})
    assert [constants(after)[f"{name}_codebook"].size for name in "ab"] == [4, 3]


def test_a_pattern_of_layer_centroids_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"codebook\(layer_centroids=\.\.\.\): no weight or layer is named 'c'"
    ):
        share(two_layers(), layer_centroids={"c": 3})


def test_layers_have_tradeoffs_of_their_own() -> None:
    model = two_layers()
    alike, dear = (constants(share(model, bits=4, tradeoff=price)[0]) for price in (0.02, 0.2))
    after, report = share(model, bits=4, tradeoff=0.02, layer_tradeoffs={"b": 0.2})
    mixed = constants(after)
    assert (mixed["a_codebook"] == alike["a_codebook"]).all()
    assert mixed["b_codebook"].size < alike["b_codebook"].size
    assert (mixed["b_codebook"] == dear["b_codebook"]).all()
    assert report.metrics["entropy_bits"] < report.metrics["nearest_entropy_bits"]
    free, _ = share(model, bits=4, tradeoff=0.2, layer_tradeoffs={"*": 0.0})
    assert (constants(free)["a_codebook"] == constants(share(model, bits=4)[0])["a_codebook"]).all()


def test_a_layer_with_a_tradeoff_of_its_own_shares_no_codebook() -> None:
    after, _ = share(two_layers(), bits=4, share="network", layer_tradeoffs={"b": 0.1})
    assert {name for name in constants(after) if "codebook" in name} == {"a_codebook", "b_codebook"}


def test_a_pattern_of_layer_tradeoffs_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"codebook\(layer_tradeoffs=\.\.\.\): no weight or layer is named 'c'"
    ):
        share(two_layers(), layer_tradeoffs={"c": 0.1})


@pytest.mark.parametrize(
    "options", [{"method": "exact"}, {"init": "density"}, {"init": "kmeans++", "seed": 3}]
)
def test_the_way_to_choose_values_is_an_option(options: dict[str, object]) -> None:
    model = two_layers()
    plain, before = share(model)
    other, report = share(model, **options)
    assert (constants(plain)["a_codebook"] != constants(other)["a_codebook"]).any()
    assert report.metrics["weight_sqnr_db"] >= (
        before.metrics["weight_sqnr_db"] if "method" in options else 18.5
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_the_whole_network_shares_one_codebook(sparse: bool) -> None:
    model = with_zeros(two_layers()) if sparse else two_layers()
    after, report = share(model, share="network")
    gathers = [node for node in after.graph.node if node.op_type == "Gather"]
    assert [gather.input[0] for gather in gathers] == ["codebook", "codebook"]
    stored = constants(after)
    assert stored.keys() == {"codebook", "a_indices", "b_indices", "bias"}
    assert stored["codebook"].shape == (16,)
    assert (stored["codebook"] == 0).sum() == sparse
    for name in "ab":
        original = constants(model)[name]
        restored = decoded(after, name)
        nearest = np.abs(original[..., None].astype(np.float64) - stored["codebook"]).min(axis=-1)
        np.testing.assert_array_equal(restored == 0, original == 0)
        np.testing.assert_allclose(
            np.abs(original.astype(np.float64) - restored)[original != 0], nearest[original != 0], atol=1e-12
        )
    assert [edit.what.split(", ")[0] for edit in report.edits] == ["16 values shared by 2 weights"] * 2


def test_a_layer_with_its_own_number_stays_out_of_the_network_codebook() -> None:
    text = "(float[N, 40] x) => (float[N, 20] y) { h = MatMul (x, a) i = MatMul (h, c) y = MatMul (i, b) }"
    model = build(text, 21, a=random(40, 50), c=random(50, 50), b=random(50, 20))
    after, _ = share(model, share="network", layers={"c": 2})
    assert {node.input[0] for node in after.graph.node if node.op_type == "Gather"} == {
        "codebook",
        "c_codebook",
    }
    assert (constants(after)["codebook"].size, constants(after)["c_codebook"].size) == (16, 4)


def test_the_name_of_the_network_codebook_may_be_taken() -> None:
    text = "(float[N, 40] x) => (float[N, 50] y) { codebook = MatMul (x, a) y = MatMul (codebook, b) }"
    after, _ = share(build(text, 21, a=random(40, 50), b=random(50, 50)), share="network")
    assert "codebook_1" in constants(after)
    run(after, {"x": random(2, 40)})


@pytest.mark.parametrize("op, text, shape, axis", [
    ("Conv", CONV, (30, 8, 3, 3), 0),
    ("MatMul", "(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }", (40, 50), 1),
    ("Gemm", "(float[N, 40] x) => (float[N, 50] y) { y = Gemm <transB = 1> (x, w) }", (50, 40), 0),
    ("ConvTranspose", "(float[N, 8, 6, 6] x) => (float[N, 30, 8, 8] y) { y = ConvTranspose (x, w) }", (8, 30, 3, 3), 1),
])  # fmt: skip
def test_groups_of_output_channels_have_codebooks_of_their_own(
    op: str, text: str, shape: tuple[int, ...], axis: int
) -> None:
    scale = np.linspace(0.1, 3, shape[axis], dtype=np.float32)
    weight = np.moveaxis(np.moveaxis(random(*shape), axis, -1) * scale, -1, axis)
    model = build(text, 21, w=weight)
    after, report = share(model, bits=2, share="channel_group", groups=3)
    ops = [node.op_type for node in after.graph.node]
    assert ops == ["Cast"] * 3 + ["Gather"] * 3 + ["Concat", op]
    concat = after.graph.node[-2]
    assert (concat.attribute[0].i, concat.output[0]) == (axis, "w")
    stored = {tensor.name: tensor for tensor in after.graph.initializer}
    assert {onnx.TensorProto.DataType.Name(stored[f"w_indices_{i}"].data_type) for i in range(3)} == {"UINT4"}
    sizes = [stored[f"w_indices_{part}"].dims[axis] for part in range(3)]
    assert sum(sizes) == shape[axis]
    assert max(sizes) - min(sizes) <= 1
    for part, channels in enumerate(np.split(np.arange(shape[axis]), np.cumsum(sizes[:2]))):
        restored, original = (array.take(channels, axis) for array in (decoded(after, "w"), weight))
        codebook = constants(after)[f"w_codebook_{part}"]
        assert codebook.shape == (4,)
        nearest = np.abs(original[..., None].astype(np.float64) - codebook).min(axis=-1)
        np.testing.assert_allclose(np.abs(original.astype(np.float64) - restored), nearest, atol=1e-12)
    assert report.edits[0].what.startswith("3 groups of up to 4 shared values, 4-bit indices")
    assert report.metrics["weight_sqnr_db"] > share(model, bits=2)[1].metrics["weight_sqnr_db"] + 0.5


def test_more_groups_than_channels_are_one_per_channel() -> None:
    wide = build("(float[N, 2000] x) => (float[N, 3] y) { y = MatMul (x, w) }", 21, w=random(2000, 3))
    after, _ = share(wide, share="channel_group", groups=1000, bits=1)
    assert [node.op_type for node in after.graph.node].count("Gather") == 3
    x = random(2, 2000)
    np.testing.assert_allclose(run(after, {"x": x})["y"], x @ decoded(after, "w"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", range(100, 600, 25))
def test_groups_never_make_the_file_larger(size: int) -> None:
    text = f"(float[N, {size}] x) => (float[N, 4] y) {{ y = MatMul (x, decoder_layer_weight) }}"
    model = build(text, 21, decoder_layer_weight=random(size, 4))
    before, _ = share(model, layers={"*": 0})
    after, report = share(model, share="channel_group", groups=4, bits=4)
    for node in after.graph.node:
        if node.op_type != "MatMul":
            node.metadata_props.add(key="lathe.pass", value="codebook")  # as the pipeline does
    saved = before.ByteSize() - after.ByteSize()
    assert saved > 0 if report.edits else "bytes would become" in report.skips[0].reason


@pytest.mark.parametrize("options", [{"share": "network"}, {"share": "channel_group", "groups": 3}])
def test_other_passes_and_the_bridge_understand_shared_codebooks(options: dict[str, object]) -> None:
    model = with_zeros(two_layers())
    after, _ = share(model, bits=4, **options)
    x = random(5, 40)
    graph = import_model(after)
    for weight in weights(graph, refuse=pytest.fail):
        original = constants(model)[weight.name]
        assert zeros_of(weight.tensor, weight.opset) == (original.size // 2, original.shape)
        codebook, indices = codebook_of(weight.tensor) or pytest.fail("not seen as a codebook")
        np.testing.assert_array_equal(codebook[indices.astype(int)], decoded(after, weight.name))
    books = {name for name in constants(after) if "codebook" in name}
    assert trainable(after.graph) == books | {"bias"}
    module = GraphModule(after)
    np.testing.assert_allclose(
        module(torch.from_numpy(x)).detach().numpy(), run(after, {"x": x})["y"], rtol=1e-4, atol=1e-4
    )
    int8, report = quantize(after, activations=False)
    assert report.skips == []
    expected = run(after, {"x": x})["y"]
    assert np.abs(run(int8, {"x": x})["y"] - expected).max() <= 0.03 * np.abs(expected).max()
    lowered = import_model(int8)
    Lowering().apply(lowered, Context())
    np.testing.assert_allclose(
        run(export_model(lowered), {"x": x})["y"], run(int8, {"x": x})["y"], rtol=1e-4, atol=1e-4
    )


def test_a_tradeoff_makes_codes_shorter_and_says_by_how_much() -> None:
    model = with_zeros(two_layers(), 0.8)
    after, report = share(model, bits=4, tradeoff=0.05)
    plain, before = share(model, bits=4)
    bits = elements = 0.0
    for name, edit in zip("ab", report.edits, strict=True):
        own = entropy_bits(np.bincount(constants(after)[f"{name}_indices"].astype(np.uint8).reshape(-1)))
        nearest = entropy_bits(np.bincount(constants(plain)[f"{name}_indices"].astype(np.uint8).reshape(-1)))
        assert f"{own:.2f} bits per weight ({nearest:.2f} by nearest value)" in edit.what
        assert own < nearest
        size = constants(model)[name].size
        bits, elements = bits + size * own, elements + size
        np.testing.assert_array_equal(decoded(after, name) == 0, constants(model)[name] == 0)
    assert report.metrics["entropy_bits"] == pytest.approx(bits / elements)
    assert report.metrics["nearest_entropy_bits"] > report.metrics["entropy_bits"]
    assert 12 < report.metrics["weight_sqnr_db"] < before.metrics["weight_sqnr_db"]


def test_a_mantissa_rounds_the_shared_values() -> None:
    after, _ = share(two_layers(), mantissa=7)
    raw = np.concatenate([constants(after)[f"{name}_codebook"] for name in "ab"]).view(np.uint32)
    assert not (raw & 0xFFFF).any(), "bfloat16 has the upper half of a float's bits"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"share": "layer"},
            r"codebook\(share=\.\.\.\) must be one of tensor, network, channel_group, not 'layer'",
        ),
        ({"groups": 1}, r"codebook\(groups=\.\.\.\) must be at least 2"),
        ({"tradeoff": -0.1}, r"codebook\(tradeoff=\.\.\.\) must be at least 0"),
        ({"layer_tradeoffs": {"a": -0.1}}, r"for 'a' must be at least 0"),
        ({"tradeof": 0.1}, r"no option 'tradeof'; did you mean 'tradeoff'"),
        ({"init": "random"}, r"must be one of linear, density, kmeans\+\+"),
        ({"mantissa": 24}, r"codebook\(mantissa=\.\.\.\) must be 0 to 23"),
        ({"layer_centroids": {"a": 1}}, r"for 'a' must be 2 to 256"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(Codebook, options)
