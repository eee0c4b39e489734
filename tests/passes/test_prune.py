"""prune at once: exactly which weights become zero, what is recorded, and what is refused."""

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.prune.prune import Prune
from tests.support.builders import build, random, run

TWO_LAYERS = (
    "(float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, a) r = Relu (h) y = Gemm <transB = 1> (r, b) }"
)


def prune(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(Prune, {"min_size": 1, "clean": False} | options).apply(graph, Context())
    pruned = export_model(graph)
    onnx.checker.check_model(pruned, full_check=True)
    return pruned, report


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def recorded(model: onnx.ModelProto) -> dict[str, str]:
    return metadata.read_sparse(model.metadata_props)


def two_layers() -> onnx.ModelProto:
    return build(TWO_LAYERS, a=random(8, 16), b=random(4, 16))


def expected(weight: np.ndarray, zeros: int) -> np.ndarray:
    pruned = weight.copy()
    pruned.reshape(-1)[np.argsort(np.abs(weight).reshape(-1), kind="stable")[:zeros]] = 0.0
    return pruned


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_smallest_weights_of_every_layer_become_zero(sparsity: float) -> None:
    model = two_layers()
    before = constants(model)
    after, report = prune(model, sparsity=sparsity)
    pruned = constants(after)
    for name in "ab":
        np.testing.assert_array_equal(
            pruned[name], expected(before[name], round(sparsity * before[name].size))
        )
    assert recorded(after) == {"a": "unstructured", "b": "unstructured"}
    assert [edit.node for edit in report.edits] == ["MatMul_0", "Gemm_2"]
    assert (
        report.edits[0].what
        == f"{round(128 * sparsity)} of 128 weights are zero ({100 * round(128 * sparsity) / 128:.1f} %), 0 before"
    )
    assert report.metrics == {"sparsity": (round(128 * sparsity) + round(64 * sparsity)) / 192}
    x = random(3, 8)
    np.testing.assert_allclose(
        run(after, {"x": x})["y"], np.maximum(x @ pruned["a"], 0) @ pruned["b"].T, rtol=1e-5, atol=1e-5
    )


def test_global_scope_has_one_threshold_for_all_layers() -> None:
    model = build(TWO_LAYERS, a=random(8, 16), b=10 * random(4, 16))
    before = constants(model)
    after, report = prune(model, sparsity=0.5, scope="global")
    together = expected(np.concatenate([before["a"].reshape(-1), before["b"].reshape(-1)]), 96)
    np.testing.assert_array_equal(constants(after)["a"].reshape(-1), together[:128])
    np.testing.assert_array_equal(constants(after)["b"].reshape(-1), together[128:])
    assert report.metrics == {"sparsity": 0.5}


def test_global_scope_leaves_a_layer_of_large_weights_whole() -> None:
    model = build(TWO_LAYERS, a=random(8, 16), b=100 + np.abs(random(4, 16)))
    after, report = prune(model, sparsity=0.3, scope="global")
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gemm_2", "none of its weights is among the smallest")
    ]
    assert recorded(after) == {"a": "unstructured"}


def test_lamp_makes_layers_comparable() -> None:
    """A layer of weights a hundred times smaller loses as large a share, where one magnitude for all would
    take it whole.
    """
    a, b = random(8, 16), random(4, 16)
    model = build(TWO_LAYERS, a=a, b=b / 100)
    after, report = prune(model, sparsity=0.5, scope="global", score="lamp")
    plain, _ = prune(model, sparsity=0.5, scope="global")
    assert int((constants(plain)["b"] == 0).sum()) == 64
    scored = []
    for weight in (a, b / 100):
        squares = weight.astype(np.float64) ** 2
        scored.append(
            np.array([square / squares[squares >= square].sum() for square in squares.reshape(-1)]).reshape(
                weight.shape
            )
        )
    least = np.sort(np.concatenate([one.reshape(-1) for one in scored]))[96]
    for name, one in zip("ab", scored, strict=True):
        np.testing.assert_array_equal(
            constants(after)[name], np.where(one >= least, constants(model)[name], 0)
        )
    assert report.metrics == {"sparsity": 0.5}


def test_ties_go_by_position() -> None:
    weight = np.array([[1, -1, 1, 2], [1, 1, -1, 3]], np.float32)
    model = build("(float[N, 2] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    after, _ = prune(model, sparsity=0.5)
    np.testing.assert_array_equal(constants(after)["w"], [[0, 0, 0, 2], [0, 1, -1, 3]])


def test_zeros_that_are_there_count_and_stay() -> None:
    weight = np.array([[0.0, 5, -0.0, 4], [3, 0.0, 2, 1]], np.float32)
    model = build("(float[N, 2] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    after, _ = prune(model, sparsity=0.5)
    np.testing.assert_array_equal(constants(after)["w"], [[0, 5, 0, 4], [3, 0, 2, 0]])
    less, report = prune(model, sparsity=0.25)
    np.testing.assert_array_equal(constants(less)["w"], weight)
    assert recorded(less) == {"w": "unstructured"}, "a retraining must know of zeros that another tool made"
    assert [edit.what for edit in report.edits] == ["3 of 8 weights are zero (37.5 %), 3 before"]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_second_run_has_nothing_to_do(scope: str) -> None:
    once, _ = prune(two_layers(), sparsity=0.7, scope=scope)
    twice, report = prune(once, sparsity=0.7, scope=scope)
    assert report.edits == []
    assert all("are zero already" in skip.reason for skip in report.skips)
    assert len(report.skips) == 2
    assert twice.SerializeToString() == once.SerializeToString()


def test_the_source_model_stays_as_it_was() -> None:
    model = two_layers()
    before = model.SerializeToString()
    prune(model, sparsity=0.9)
    assert model.SerializeToString() == before


def test_values_stored_as_typed_fields_are_pruned_too() -> None:
    model = two_layers()
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).reshape(-1)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)
    before = constants(model)
    after, _ = prune(model, sparsity=0.5)
    np.testing.assert_array_equal(constants(after)["a"], expected(before["a"], 64))


@pytest.mark.parametrize(
    "layers, zeros",
    [
        ({"a": 0.25}, (32, 32)),
        ({"Gemm_*": 0.75}, (64, 48)),
        ({"*": 0.25, "b": 0.0}, (32, 0)),
        ({"b": 0.0, "*": 0.25}, (32, 16)),
        ({"[ab]": 0.125}, (16, 8)),
    ],
    ids=["weight", "layer", "last match wins", "last match wins, other order", "set"],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_patterns_set_the_sparsity_of_single_layers(
    layers: dict[str, float], zeros: tuple[int, int], scope: str
) -> None:
    if scope == "global" and len(layers) == 1 and "[ab]" not in layers:
        layers = {"*": 0.5, **layers}  # so that nothing is left for the pool
    after, _ = prune(two_layers(), sparsity=0.5, scope=scope, layers=layers)
    assert tuple(int((constants(after)[name] == 0).sum()) for name in "ab") == zeros


def test_a_layer_with_its_own_sparsity_is_not_in_the_pool() -> None:
    model = build(TWO_LAYERS, a=random(8, 16), b=random(4, 16) / 1000)
    after, _ = prune(model, sparsity=0.5, scope="global", layers={"b": 0.0})
    assert int((constants(after)["a"] == 0).sum()) == 64
    np.testing.assert_array_equal(constants(after)["b"], constants(model)["b"])


def test_a_name_with_brackets_matches_itself() -> None:
    model = two_layers()
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "layers[0].w"
    after, _ = prune(model, layers={"layers[0].w": 0.25})
    assert int((constants(after)["layers[0].w"] == 0).sum()) == 32


@pytest.mark.parametrize(
    "pattern, hint",
    [
        ("Gemm_3", "; did you mean 'Gemm_2'?"),
        ("A", "; did you mean 'a'?"),
        ("encoder.*", "; the weights are a, b"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        prune(two_layers(), layers={pattern: 0.5})
    assert str(caught.value) == f"prune(layers=...): no weight or layer is named '{pattern}'{hint}"


def test_a_pattern_may_name_a_layer_that_is_skipped() -> None:
    model = build("(float[N, 8] x, float[8, 4] v) => (float[N, 4] y) { y = Gemm (x, v) }")
    _, report = prune(model, layers={"Gemm_0": 0.5})
    assert [skip.reason for skip in report.skips] == ["its weight is computed at run time"]


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"layers": {"a": 1.0}}])
def test_nothing_but_zeros_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="must be below 1"):
        prune(two_layers(), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"score": "lamp"},
            "prune: score=lamp compares weights of different layers; give scope=global with it",
        ),
        (
            {"rounds": 3},
            r"prune: rounds is about training, and there is none; give training=\{epochs: ...\} as well, or leave",
        ),
        ({"rate": 0.1}, r"^pass 'prune' has no option 'rate'; write training=\{rate: 0.1\}$"),
        ({"epochs": 20}, r"^pass 'prune' has no option 'epochs'; write training=\{epochs: 20\}$"),
        ({"flip": True}, r"^pass 'prune' has no option 'flip'; write training=\{flip: true\}$"),
        ({"importance": "taylor"}, r"has no option 'importance'; write prune_channels\(importance=taylor\)$"),
        ({"keep_multiple": 8}, r"has no option 'keep_multiple'; write prune_channels\(keep_multiple=8\)$"),
        ({"macs": 0.5}, r"has no option 'macs'; write prune_channels\(macs=0.5\)$"),
        (
            {"pattern": "channels"},
            r"^pass 'prune' has no option 'pattern'; whole channels go with prune_channels\(...\), "
            r"all but N of M neighbours with prune_nm\(n=2, m=4\)$",
        ),
        ({"pattern": "1:4"}, r"option 'pattern'; all but 1 of 4 neighbours go with prune_nm\(n=1, m=4\)$"),
        ({"pattern": "unstructured"}, "option 'pattern'; leave it out"),
        ({"epochs": 0}, "option 'epochs'; leave it out"),
        ({"regrow": False}, "prune: regrow is about training"),
        ({"training": {"epochs": -1}}, r"prune\(training=\{epochs: ...\}\) must be at least 1, not -1"),
        ({"schedule": "cubick"}, "must be one of cubic, linear, once"),
        ({"until": 0.0}, "must be 0.01 to 1.0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(Prune, options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weights_that_are_not_finite_are_left_alone(bad: float, scope: str) -> None:
    broken = random(8, 16)
    broken[3, 5] = bad
    model = build(TWO_LAYERS, a=broken, b=random(4, 16))
    after, report = prune(model, sparsity=0.5, scope=scope)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_0", "its weight has NaN or infinite elements")
    ]
    np.testing.assert_array_equal(constants(after)["a"], broken)
    assert int((constants(after)["b"] == 0).sum()) == 32


def test_small_weights_are_left_alone_by_default() -> None:
    model = build(TWO_LAYERS, a=random(8, 16), b=random(4, 16)[:, :])
    graph = import_model(model)
    report = configure(Prune, {"min_size": 65}).apply(graph, Context())
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gemm_2", "its weight has 64 elements, fewer than min_size=65")
    ]
    assert configure(Prune, {}).config.min_size == 64


def test_a_weight_of_two_layers_is_pruned_once() -> None:
    text = "(float[N, 8] x) => (float[N, 8] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }"
    after, report = prune(build(text, w=random(8, 8)), sparsity=0.5)
    assert [edit.node for edit in report.edits] == ["MatMul_0"]
    assert int((constants(after)["w"] == 0).sum()) == 32


@pytest.mark.parametrize(
    "decoder, stored, reason",
    [
        (
            "c = Cast <to = 6> (i) w = Gather (k, c)",
            {"i": np.zeros((8, 16), np.uint8), "k": random(4)},
            "a codebook; prune before codebook",
        ),
        (
            "w = DequantizeLinear (q, s)",
            {"q": np.zeros((8, 16), np.int8), "s": np.float32(0.1)},
            "int8; prune before int8",
        ),
    ],
    ids=["codebook", "int8"],
)
def test_weights_in_another_form_are_refused(
    decoder: str, stored: dict[str, np.ndarray], reason: str
) -> None:
    model = build(f"(float[N, 8] x) => (float[N, 16] y) {{ {decoder} y = MatMul (x, w) }}", **stored)
    after, report = prune(model)
    assert [skip.reason for skip in report.skips] == [f"its weight is stored as {reason}"]
    assert report.edits == []
    assert recorded(after) == {}


def test_a_weight_that_is_computed_is_refused_until_it_is_folded() -> None:
    model = build(
        "(float[N, 8] x) => (float[N, 16] y) { t = Transpose (w) y = MatMul (x, t) }", w=random(16, 8)
    )
    _, report = prune(model)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_1", "its weight is computed by Transpose; fold before prune")
    ]


@pytest.mark.parametrize(
    "outputs, nodes, reason",
    [
        (", float[8, 8] w", "", "its weight is an output of the model"),
        (", float[K, 8] e", "e = Gather (w, token)", "its weight is also read by Gather_1"),
    ],
)
def test_a_weight_with_another_use_is_refused(outputs: str, nodes: str, reason: str) -> None:
    text = f"(float[N, 8] x, int64[K] token) => (float[N, 8] y{outputs}) {{ y = MatMul (x, w) {nodes} }}"
    weight = random(8, 8)
    after, report = prune(build(text, w=weight))
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_0", reason)]
    np.testing.assert_array_equal(constants(after)["w"], weight)


def test_an_entry_with_a_pattern_stays() -> None:
    graph = import_model(two_layers())
    set_sparse_tensors(graph, {"a": "2:4"})
    configure(Prune, {"sparsity": 0.9, "min_size": 1}).apply(graph, Context())
    assert sparse_tensors(graph) == {"a": "2:4", "b": "unstructured"}


def test_a_model_without_weights_has_nothing_to_do() -> None:
    model = build("(float[N, 8] x) => (float[N, 8] y) { y = Relu (x) }")
    after, report = prune(model)
    assert report == PassReport()
    assert recorded(after) == {}
