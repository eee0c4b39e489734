"""codebook: the canonical form, the error, what stays zero, and what is refused."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.codebook import sharing
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model, set_sparse_tensors
from onnx_lathe.passes.prune.prune import Prune
from tests.support.builders import build, random, run
from tests.support.codebooks import constants, decoded, share, two_layers

LAYER = "(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }"


@pytest.mark.parametrize(
    "opset, bits, kind",
    [
        (21, 1, "UINT4"),
        (21, 4, "UINT4"),
        (21, 5, "UINT8"),
        (21, 8, "UINT8"),
        (17, 5, "UINT8"),
        (17, 4, "UINT4"),
        (13, 2, "UINT4"),
    ],
)
def test_canonical_form(opset: int, bits: int, kind: str) -> None:
    model = build(LAYER, opset, w=random(40, 50))
    after, report = share(model, bits=bits)
    cast, gather, layer = after.graph.node
    assert (cast.op_type, gather.op_type, layer.op_type) == ("Cast", "Gather", "MatMul")
    assert list(cast.input) == ["w_indices"]
    assert list(gather.input) == ["w_codebook", cast.output[0]]
    assert list(gather.output) == ["w"] == [layer.input[1]]
    assert [(a.name, a.i) for a in cast.attribute] == [("to", TensorProto.INT32)]
    assert [(a.name, a.i) for a in gather.attribute] == [("axis", 0)]
    stored = {tensor.name: tensor for tensor in after.graph.initializer}
    assert stored.keys() == {"w_codebook", "w_indices"}
    assert TensorProto.DataType.Name(stored["w_indices"].data_type) == kind
    assert list(stored["w_indices"].dims) == [40, 50]
    assert len(stored["w_indices"].raw_data) == (1000 if kind == "UINT4" else 2000)
    codebook = constants(after)["w_codebook"]
    assert codebook.dtype == np.float32
    assert codebook.shape == (2**bits,)
    assert after.ir_version >= (10 if kind == "UINT4" else 4)
    assert after.opset_import[0].version == (21 if kind == "UINT4" else opset)
    assert [edit.node for edit in report.edits] == ["MatMul_0"]


def test_a_network_of_an_older_opset_keeps_its_numbers_and_its_zeros() -> None:
    """A branch, a bias and claimed zeros beside the raised opset; what is shared is that of opset 21."""
    newer, older = two_layers(21), onnx.ModelProto()
    newer.graph.node[0].metadata_props.add(key="kept", value="yes")
    older.CopyFrom(newer)
    older.opset_import[0].version = 13
    files = []
    for model in (older, newer):
        pruned, _ = share(model, (Prune, {"sparsity": 0.8}), centroids=256, layers={"*": 0})
        files.append(share(pruned, bits=4, biases=2)[0])
    assert [model.opset_import[0].version for model in files] == [21, 21]
    old, new = (constants(model) for model in files)
    assert old.keys() == new.keys()
    for name in old:
        np.testing.assert_array_equal(old[name], new[name])
    assert "kept" in {entry.key for node in files[0].graph.node for entry in node.metadata_props}
    x = random(3, 40)
    np.testing.assert_array_equal(run(files[0], {"x": x})["y"], run(files[1], {"x": x})["y"])
    assert files[0].ByteSize() < 1.05 * files[1].ByteSize()


def test_more_than_sixteen_values_leave_the_opset_as_it_is() -> None:
    after, report = share(build(LAYER, 17, w=random(40, 50)), bits=8)
    assert after.opset_import[0].version == 17
    assert not report.warnings


def test_an_opset_that_cannot_be_raised_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "raise_opset", lambda graph, wanted: "it has a node of another domain")
    after, report = share(build(LAYER, 17, w=random(40, 50)), bits=4)
    assert constants(after)["w_indices"].dtype == np.uint8
    assert "take 8 bits, not 4: opset 17" in report.warnings[0]
    assert "it has a node of another domain" in report.warnings[0]
    assert "8-bit indices" in report.edits[0].what


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnx_runtime_computes_with_the_nearest_shared_values(bits: int) -> None:
    model = two_layers()
    after, _ = share(model, bits=bits)
    weights = {}
    for name in "ab":
        weights[name] = decoded(after, name)
        codebook, original = constants(after)[f"{name}_codebook"], constants(model)[name]
        nearest = np.abs(original[..., None].astype(np.float64) - codebook).min(axis=-1)
        np.testing.assert_allclose(np.abs(original.astype(np.float64) - weights[name]), nearest, atol=1e-12)
    np.testing.assert_array_equal(constants(after)["bias"], constants(model)["bias"])
    x = random(3, 40)
    expected = np.maximum(x @ weights["a"], 0) @ weights["b"].T + constants(model)["bias"]
    np.testing.assert_allclose(run(after, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits, floor", [(3, 14.3), (4, 19.8), (5, 25.2)])
def test_signal_to_noise(bits: int, floor: float) -> None:
    """Against the best for a normal distribution: 14.62, 20.22 and 26.02 dB (Max, 1960)."""
    weight = random(200, 100)
    model = build("(float[N, 200] x) => (float[N, 100] y) { y = MatMul (x, w) }", 21, w=weight)
    after, report = share(model, bits=bits)
    noise = float(np.square(weight - decoded(after, "w"), dtype=np.float64).sum())
    found = 10 * np.log10(float(np.square(weight, dtype=np.float64).sum()) / noise)
    assert found >= floor
    assert report.metrics == {"weight_sqnr_db": pytest.approx(found, abs=1e-6)}
    assert (
        report.edits[0].what
        == f"{2**bits} shared values, {4 if bits < 5 else 8}-bit indices, {found:.1f} dB signal to noise"
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pruned_weights_and_no_others_are_zero(bits: int) -> None:
    model = two_layers()
    pruned, _ = share(model, (Prune, {"sparsity": 0.8}), centroids=256, layers={"*": 0})
    after, _ = share(pruned, bits=bits)
    for name in "ab":
        np.testing.assert_array_equal(decoded(after, name) == 0, constants(pruned)[name] == 0)
        assert (constants(after)[f"{name}_codebook"] == 0).sum() == 1


def test_zeros_that_nobody_claims_are_values_like_others() -> None:
    weight = np.linspace(-1, 1, 2001, dtype=np.float32)[:2000].reshape(40, 50)
    after, _ = share(build(LAYER, 21, w=weight), bits=2)
    assert 0.0 not in constants(after)["w_codebook"]


def test_one_bit_cannot_keep_zeros_apart() -> None:
    graph = import_model(build(LAYER, 21, w=random(40, 50)))
    set_sparse_tensors(graph, {"w": "unstructured"})
    report = configure(Codebook, {"bits": 1}).apply(graph, Context())
    reason = (
        "its zeros must stay, and negative, zero and positive weights need at least 3 values; give it 2 bits"
    )
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_0", reason)]


def test_one_bit_is_enough_for_zero_and_one_value() -> None:
    graph = import_model(build(LAYER, 21, w=np.where(random(40, 50) > 0, np.float32(0.5), np.float32(0))))
    set_sparse_tensors(graph, {"w": "unstructured"})
    report = configure(Codebook, {"bits": 1}).apply(graph, Context())
    assert [edit.what for edit in report.edits] == ["2 shared values, 4-bit indices, exact"]


@pytest.mark.parametrize("values", [1, 3, 16])
def test_a_clustered_weight_is_stored_without_loss(values: int) -> None:
    palette = random(values)
    weight = palette[np.random.default_rng(0).integers(0, values, (40, 50))]
    after, report = share(build(LAYER, 21, w=weight), bits=4)
    np.testing.assert_array_equal(decoded(after, "w"), weight)
    assert [edit.what for edit in report.edits] == [f"{values} shared values, 4-bit indices, exact"]
    assert report.metrics == {}


def test_a_second_run_has_nothing_to_do() -> None:
    once, _ = share(two_layers())
    twice, report = share(once)
    assert report.edits == []
    assert [skip.node for skip in report.skips] == ["MatMul_0", "Gemm_2"]
    assert {skip.reason for skip in report.skips} == {"its weight is a codebook already"}
    assert twice.SerializeToString() == once.SerializeToString()


def test_the_source_model_stays_as_it_was() -> None:
    model = two_layers()
    before = model.SerializeToString()
    share(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "options, sizes",
    [
        ({}, (16, 16)),
        ({"centroids": 7}, (7, 7)),
        ({"bits": 3, "layers": {"a": 5}}, (32, 8)),
        ({"layers": {"Gemm*": 2}}, (16, 4)),
        ({"centroids": 7, "layers": {"*": 6, "b": 1}}, (64, 2)),
    ],
)
def test_options_set_the_number_of_values(options: dict[str, object], sizes: tuple[int, int]) -> None:
    after, _ = share(two_layers(), **options)
    assert tuple(constants(after)[f"{name}_codebook"].size for name in "ab") == sizes


def test_zero_bits_leave_a_layer_as_it_is() -> None:
    model = two_layers()
    after, report = share(model, layers={"a": 0})
    np.testing.assert_array_equal(constants(after)["a"], constants(model)["a"])
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_0", "its bits are set to 0")]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        share(two_layers(), layers={"MatMul_1": 4})
    assert (
        str(caught.value)
        == "codebook(layers=...): no weight or layer is named 'MatMul_1'; did you mean 'MatMul_0'?"
    )


@pytest.mark.parametrize(
    "options",
    [{"bits": 0}, {"bits": 9}, {"centroids": 1}, {"centroids": 257}, {"layers": {"a": 9}}, {"bits": 2.5}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"codebook\("):
        configure(Codebook, options)


@pytest.mark.parametrize("name", ["w", "encoder_layer_11_attention_output_dense_weight"])
@pytest.mark.parametrize("bits, sizes", [(4, range(40, 260, 4)), (8, range(340, 680, 5))])
def test_the_file_never_grows(name: str, bits: int, sizes: range) -> None:
    refused, saved = [], []
    for size in sizes:
        model = build(
            f"(float[N, {size}] x) => (float[N, 1] y) {{ y = MatMul (x, {name}) }}",
            21,
            **{name: random(size, 1)},
        )
        before, _ = share(model, layers={"*": 0})
        after, report = share(model, bits=bits, min_size=1)
        for node in after.graph.node:
            if node.op_type != "MatMul":
                node.metadata_props.add(key="lathe.pass", value="codebook")  # as the pipeline does
        if report.edits:
            saved.append(before.ByteSize() - after.ByteSize())
        else:
            refused.append(size)
            assert "bytes would become" in report.skips[0].reason
    assert 0 < min(saved) < 60, (
        "it grew, or more than that could have been saved by the largest that was refused"
    )
    assert refused == list(sizes[: len(refused)])
    assert refused


def test_small_weights_are_left_alone_by_default() -> None:
    model = build("(float[N, 5] x) => (float[N, 51] y) { y = MatMul (x, w) }", 21, w=random(5, 51))
    _, report = share(model)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_0", "its weight has 255 elements, fewer than min_size=256")
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(bad: float) -> None:
    weight = random(40, 50)
    weight[1, 2] = bad
    _, report = share(build(LAYER, 21, w=weight))
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_0", "its weight has NaN or infinite elements")
    ]


def test_int8_weights_are_refused() -> None:
    text = "(float[N, 40] x) => (float[N, 50] y) { w = DequantizeLinear (q, s) y = MatMul (x, w) }"
    _, report = share(build(text, 21, q=np.zeros((40, 50), np.int8), s=np.float32(0.1)))
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_1", "its weight is stored as int8; codebook before int8")
    ]


def test_a_weight_of_two_layers_is_shared_once() -> None:
    text = "(float[N, 40] x) => (float[N, 40] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }"
    after, report = share(build(text, 21, w=random(40, 40)))
    assert [node.op_type for node in after.graph.node].count("Gather") == 1
    assert len(report.edits) == 1


def test_names_that_are_taken_are_not_used_again() -> None:
    text = "(float[N, 40] x) => (float[N, 50] y, float[50] w_codebook) { y = MatMul (x, w) w_codebook = Identity (w_indices) }"
    after, _ = share(build(text, 21, w=random(40, 50), w_indices=random(50)))
    gather = next(node for node in after.graph.node if node.op_type == "Gather")
    assert gather.input[0] == "w_codebook_1"
    assert {"w_indices", "w_indices_1", "w_codebook_1"} == constants(after).keys()


@pytest.mark.parametrize(
    "outputs, nodes, reason",
    [
        (", float[40, 50] w", "", "its weight is an output of the model"),
        (", float[40, K] e", "e = Gather <axis = 1> (w, token)", "its weight is also read by Gather_1"),
        (
            ", float[N, 50] z",
            """z = If (c) <
                then_branch = yes () => (float[N, 50] p) { r = Relu (w) p = MatMul (x, r) },
                else_branch = no () => (float[N, 50] q) { q = Relu (y) }
            >""",
            "its weight is also read by",
        ),
    ],
    ids=["output", "embedding", "branch"],
)
def test_a_weight_with_another_use_is_refused(outputs: str, nodes: str, reason: str) -> None:
    text = f"(float[N, 40] x, int64[K] token, bool c) => (float[N, 50] y{outputs}) {{ y = MatMul (x, w) {nodes} }}"
    after, report = share(build(text, 21, w=random(40, 50)))
    assert not report.edits
    assert [skip.node for skip in report.skips] == ["MatMul_0"]
    assert report.skips[0].reason.startswith(reason)
    assert [name for name in constants(after) if "codebook" in name] == []


def test_names_inside_a_branch_are_not_used_again() -> None:
    text = """(float[N, 40] x, bool c) => (float[N, 50] y, float[N, 50] z) {
        y = MatMul (x, w)
        z = If (c) <
            then_branch = yes () => (float[N, 50] p) { w_codebook = Relu (y) p = Neg (w_codebook) },
            else_branch = no () => (float[N, 50] q) { q = Relu (y) }
        >
    }"""
    after, _ = share(build(text, 21, w=random(40, 50)))
    assert next(node for node in after.graph.node if node.op_type == "Gather").input[0] == "w_codebook_1"
    run(after, {"x": random(2, 40), "c": np.array(True)})


def test_indices_are_unsigned_four_bit_values() -> None:
    graph = import_model(build(LAYER, 21, w=random(40, 50)))
    configure(Codebook, {}).apply(graph, Context())
    stored = graph.tensors()["w_indices"].values
    assert stored.dtype == ml_dtypes.uint4
    assert stored.astype(np.uint8).max() == 15
