"""prune: hidden units that nothing reads lose their weights first, and nothing else changes."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.numerics.sparsity.hidden_units import Link
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget, choose
from onnx_lathe.passes.prune.chains import find_links
from onnx_lathe.passes.prune.prune import Prune
from tests.support.builders import build, run

GENERATOR = np.random.default_rng(2)
DENSE = (
    "(float[n, 6] x) => (float[n, 3] y) { a = Gemm <transB = 1> (x, w, b)  r = Relu(a)  y = MatMul(r, v) }"
)


def random(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def dense(dead: tuple[int, ...] = (2, 5)) -> onnx.ModelProto:
    """8 hidden units, of which `dead` are read by tiny weights alone and written by large ones."""
    w, b, v = random(8, 6), np.full(8, 3, np.float32), random(8, 3) + np.float32(3)
    w[list(dead)] *= 10
    v[list(dead)] = 1e-3
    return build(DENSE, w=w, b=b, v=v)


def prune(
    model: onnx.ModelProto, **options: object
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], PassReport]:
    graph = import_model(model)
    report = configure(Prune, {"min_size": 1} | options).apply(graph, Context())
    after = export_model(graph)
    onnx.checker.check_model(after, full_check=True)
    return (
        after,
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer},
        report,
    )


def test_a_unit_that_nothing_reads_loses_its_weights_first() -> None:
    model = dense()
    _, values, report = prune(model, sparsity=0.25)
    assert not values["v"][[2, 5]].any()
    assert not values["w"][[2, 5]].any(), "they were the largest"
    assert not values["b"][[2, 5]].any()
    assert values["w"][[0, 1, 3, 4, 6, 7]].all()
    assert (int((values["w"] == 0).sum()), int((values["v"] == 0).sum())) == (12, 6), (
        "exactly a quarter of each"
    )
    assert report.metrics == {"sparsity": 0.25, "dead_units": 2.0}
    assert report.edits[-1].what == "b is zero for 2 of 8 units, which nothing reads"
    _, plain, _ = prune(model, sparsity=0.25, clean=False)
    assert plain["w"][[2, 5]].all()


def test_what_a_dead_unit_costs_changes_no_output() -> None:
    """The same zeros in the second layer, with and without the first layer's of dead units: bit for bit one
    function.
    """
    model = dense()
    after, values, _ = prune(model, sparsity=0.25)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | {
        "v": values["v"]
    }
    x = random(50, 6)
    np.testing.assert_array_equal(run(build(DENSE, **kept), {"x": x})["y"], run(after, {"x": x})["y"])


def test_a_second_run_has_nothing_to_do() -> None:
    once, _, _ = prune(dense(), sparsity=0.25)
    twice, _, report = prune(once, sparsity=0.25)
    assert report.edits == []
    assert twice.SerializeToString() == once.SerializeToString()


def test_the_freed_weights_stay_with_living_units() -> None:
    model = dense()
    _, cleaned, _ = prune(model, sparsity=0.5, scope="global")
    _, plain, _ = prune(model, sparsity=0.5, scope="global", clean=False)
    alive = [0, 1, 3, 4, 6, 7]
    living = {
        name: sum(np.count_nonzero(values[key][alive]) for key in "wv")
        for name, values in (("cleaned", cleaned), ("plain", plain))
    }
    assert living["cleaned"] == 36 > living["plain"]
    assert sum(np.count_nonzero(plain[key]) for key in "wv") == 36


def test_units_die_in_a_row() -> None:
    """What only dead units read is dead too."""
    u, w, v = random(6, 5), random(5, 4) + np.float32(4), random(4, 3) + np.float32(4)
    w[0, 1:] = 1e-3  # unit 0 is read by unit 0 alone,
    v[0] = 1e-3  # which nothing reads
    text = "(float[n, 6] x) => (float[n, 3] y) { a = MatMul(x, u)  r = Relu(a)  c = MatMul(r, w)  s = Tanh(c)  y = MatMul(s, v) }"
    _, values, report = prune(
        build(text, u=u, w=w, v=v), layers={"u": 0.2, "w": 0.4, "v": 0.25}, sparsity=0.5
    )
    assert not values["v"][0].any()
    assert not values["w"][:, 0].any()
    assert not values["w"][0].any()
    assert not values["u"][:, 0].any()
    assert report.metrics["dead_units"] == 2


def test_more_dead_weights_than_zeros_asked_for() -> None:
    _, values, report = prune(dense((0, 1, 2, 3)), layers={"w": 0.125, "v": 0.5})
    assert int((values["w"] == 0).sum()) == 6
    assert not values["w"][0].any()
    assert report.metrics["dead_units"] == 4


def test_what_makes_a_unit_dead_stays_when_its_weights_do_not_all_go() -> None:
    """Else zeros would go to a unit's large weights, and the tiny ones that read it would come back."""
    v = random(8, 3) + np.float32(5)
    v[5] = 1e-6
    weights = {"w": random(8, 6), "v": v}
    choice = choose([Budget(("w", "v"), 7)], weights.__getitem__, [LINK])
    assert not choice.kept("v", v)[5].any()
    assert (~choice.kept("w", weights["w"])).sum(1).tolist() == [0, 0, 0, 0, 0, 4, 0, 0]
    assert np.flatnonzero(choice.unread[0]).tolist() == [5]


def test_a_network_is_not_cut_in_two() -> None:
    """All units of a layer can look dead when few weights are left; then their weights compete as before."""
    choice = choose(
        [Budget(("w", "v"), 70)],
        {"w": random(8, 6), "v": random(8, 3) / 100}.__getitem__,
        [LINK],
        constants=True,
    )
    assert not choice.useless[0].any()


LINK = Link("w", "v", None, 8, 0, 0)


def test_units_that_nothing_writes_go_in_training() -> None:
    w, v = random(8, 6) + np.float32(3), random(8, 3) + np.float32(9)
    w[3] = 0
    weights = {"w": w, "v": v}
    choice = choose([Budget(("w",), 12), Budget(("v",), 3)], weights.__getitem__, [LINK], constants=True)
    assert np.flatnonzero(~choice.kept("v", v).any(1)).tolist() == [3]
    at_once = choose([Budget(("w",), 12), Budget(("v",), 3)], weights.__getitem__, [LINK])
    assert not at_once.useless[0].any(), "its bias may count: the output would change"


CONV = "float[n, 2, 8, 8]"
CHAINS = [
    pytest.param("a = Conv(x, w, b)  r = Relu(a)  p = MaxPool <kernel_shape = [2, 2]> (r)  y = Conv(p, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (3, 4, 3, 3)}, id="convolutions"),
    pytest.param("a = Conv(x, w, b)  r = Clip(a, low, high)  f = Flatten(r)  y = Gemm(f, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (144, 3)}, id="flatten"),
    pytest.param("a = Conv(x, w, b)  r = LeakyRelu(a)  f = Reshape(r, shape)  y = Gemm <transB = 1> (f, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (3, 144)}, id="reshape"),
    pytest.param("a = Conv(x, w, b)  f = Reshape(a, keep)  r = Tanh(f)  y = MatMul(r, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (144, 3)}, id="reshape that copies the batch axis"),
    pytest.param("a = Conv(x, w, b)  g = GlobalAveragePool(a)  f = Squeeze(g, axes)  y = Gemm(f, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (4, 3)}, id="squeeze"),
    pytest.param("a = Conv(x, w, b)  g = ReduceMean <axes = [2, 3], keepdims = 0> (a)  y = Gemm(g, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (4, 3)}, id="mean"),
    pytest.param("a = Conv(x, w, b)  r = Relu(a)  y = Conv <group = 2> (r, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (6, 2, 3, 3)}, id="groups"),
    pytest.param("a = Conv(x, w, b)  r = Relu(a)  y = Conv <group = 4> (r, v)", CONV,
                 {"w": (4, 2, 3, 3), "b": (4,), "v": (4, 1, 3, 3)}, id="depthwise"),
    pytest.param("a = ConvTranspose(x, w, b)  r = Relu(a)  y = ConvTranspose(r, v)", CONV,
                 {"w": (2, 4, 3, 3), "b": (4,), "v": (4, 3, 3, 3)}, id="transposed"),
    pytest.param("a = MatMul(x, w)  c = Add(a, k)  r = Gelu(c)  y = MatMul(r, v)", "float[n, 5, 2]",
                 {"w": (2, 4), "k": (4,), "v": (4, 3)}, id="sequence"),
]  # fmt: skip
FIXED = {
    "shape": np.array([-1, 144]), "keep": np.array([0, -1]), "axes": np.array([2, 3]), "low": np.float32(-1), "high": np.float32(6),
}  # fmt: skip


@pytest.mark.parametrize("body, shape, sizes", CHAINS)
def test_a_channel_can_be_taken_out_of_both_ends_of_a_chain(
    body: str, shape: str, sizes: Mapping[str, tuple[int, ...]]
) -> None:
    """A link says which elements a channel is: with those of its readers zero, its own weights and bias
    change no output.
    """
    values = {name: random(*size) for name, size in sizes.items()}
    fixed = {name: value for name, value in FIXED.items() if f" {name})" in body or f" {name}," in body}
    outputs = (
        "float[n, 5, 3] y"
        if shape.count(",") == 2
        else "float[n, c, h, w2] y"
        if "y = Conv" in body
        else "float[n, 3] y"
    )
    opset = 20 if "Gelu" in body else 17
    model = build(f"({shape} x) => ({outputs}) {{ {body} }}", opset, **values, **fixed)
    [link] = find_links(import_model(model), {"w"})
    assert (link.first, link.second, link.bias, link.units) == ("w", "v", "b" if "b" in sizes else None, 4)
    out = np.array([False, True, False, True])
    unread = link.fade_outgoing(values["v"], out)
    unread[np.abs(unread) < 1e-30] = 0
    np.testing.assert_array_equal(link.read(unread), ~out)
    assert link.read(values["v"]).all()
    unwritten = link.fade_incoming(values["w"], out)
    unwritten[np.abs(unwritten) < 1e-30] = 0
    np.testing.assert_array_equal(link.written(unwritten), ~out)
    assert 2 * np.count_nonzero(unread) == values["v"].size
    assert 2 * np.count_nonzero(unwritten) == values["w"].size
    without = dict(values, v=unread, w=unwritten)
    if "b" in sizes:
        without["b"] = np.where(out, np.float32(0), values["b"])
    x = {"x": random(2, *map(int, shape[shape.index(",") + 1 : -1].split(",")))}
    results = [
        run(build(f"({shape} x) => ({outputs}) {{ {body} }}", opset, **stored, **fixed), x)["y"]
        for stored in (values | {"v": unread}, without)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0]).max() > 0


@pytest.mark.parametrize(
    "body, outputs",
    [
        ("a = Gemm(x, w)  r = Relu(a)  y = MatMul(r, v)  z = Tanh(a)", ", float[n, 4] z"),
        ("r = Gemm(x, w)  y = MatMul(r, v)", ", float[n, 4] r"),
        ("a = Gemm(x, w)  r = Log(a)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  r = Softmax(a)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  r = Mul(a, a)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  r = Add(a, x)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  t = Transpose(a)  r = Transpose(t)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  r = Reshape(a, s)  y = MatMul(r, v)", ""),
        ("a = Gemm(x, w)  r = Relu(a)  c = MatMul(r, v)  y = MatMul(c, v)", ""),
        ("c = MatMul(x, w)  a = MatMul(c, w)  y = MatMul(a, v)", ""),
        ("a = Gemm(x, w, x)  y = MatMul(a, v)", ""),
        ("a = MatMul(x, w)  y = MatMul(a, v)", ", float[4, 4] v"),
    ],
    ids=[
        *("two readers", "output", "infinite at 0", "mixes", "reads twice", "two inputs", "transposed", "mixes samples"),
        *("shared second", "shared first", "more is written", "weight is an output"),
    ],
)  # fmt: skip
def test_what_is_no_chain(body: str, outputs: str) -> None:
    text = f"(float[n, 4] x) => (float[n, 4] y{outputs}) {{ {body} }}"
    stored = {"w": random(4, 4), "v": random(4, 4), "s": np.array([-1, 4])}
    if "s)" in body:
        text, stored["s"] = text.replace("float[n, 4] y", "float[m, 4] y"), np.array([4, -1])
    else:
        del stored["s"]
    assert find_links(import_model(build(text, **stored)), {"w"}) == []


def test_a_weight_that_is_not_pruned_keeps_its_dead_units() -> None:
    _, values, _ = prune(dense(), layers={"w": 0.0, "v": 0.25})
    assert values["w"].all()
    assert values["b"].all()
