"""float16: what becomes float16, what stays float32 and why, and that the numbers stay near."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_lathe import rewrite
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.recipe import Recipe, parse_calls
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.skeleton import signature
from onnx_lathe.passes.numerics.quantization import half
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random, run

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
TOLERANCE = 1e-2


class Runs:
    """A calibrator with one batch."""

    def __init__(self, **feeds: np.ndarray) -> None:
        self.feeds = feeds

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        known = {value.name for value in model.graph.output} | set(self.feeds)
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
        yield self.feeds | run(probe, self.feeds)


def halve(
    model: onnx.ModelProto, calibrator: Runs | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    after, report = apply_pass(configure(find("float16"), options), model, Context(calibrator=calibrator))
    if report.edits:
        contract.check_structure(model, after, "float16")
    onnx.checker.check_model(after, full_check=True)
    return after, report


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def reason(report: PassReport, node: str) -> str:
    return next(skip.reason for skip in report.skips if skip.node == node)


def error(model: onnx.ModelProto, after: onnx.ModelProto, **feeds: np.ndarray) -> float:
    expected, found = run(model, feeds), run(after, feeds)
    return max(
        float(np.abs(expected[name] - found[name]).max() / np.abs(expected[name]).max()) for name in expected
    )


def in_float16(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output by the reference implementation. ONNX Runtime has few float16 kernels: it computes in
    float32 and hides an overflow.
    """
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])


CHAIN = "(float[N, 64] x) => (float[N, 64] y) {{ h = MatMul (x, w)  r = Relu (h)  {body} }}"


def chain(body: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    return build(CHAIN.format(body=body), opset, w=random(64, 64), **weights)


def test_a_chain_has_casts_at_its_ends_only() -> None:
    model = chain("y = MatMul (r, v)", v=random(64, 64))
    after, report = halve(model)
    assert ops(after) == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert set(kinds(after).values()) == {HALF}
    assert report.metrics["casts"] == 2
    assert error(model, after, x=random(4, 64)) < TOLERANCE


@pytest.mark.parametrize("name", ["lenet5-mnist", "resnet20-cifar10"])
def test_trained_networks_take_half_the_bytes(name: str, lenet5: Path) -> None:
    model = model_file.load(lenet5.parents[1] / name / "model.onnx")
    after, _ = halve(model)
    assert after.ByteSize() < 0.51 * model.ByteSize()
    shape = [dim.dim_value or 4 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert error(model, after, **{model.graph.input[0].name: random(*shape)}) < TOLERANCE


def test_what_the_report_counts_does_not_depend_on_the_precision(lenet5: Path) -> None:
    model = model_file.load(lenet5)
    before, after = measure(model), measure(halve(model)[0])
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_a_network_built_to_overflow() -> None:
    """Activations reach 1e6 in the middle; the layers on both sides of it stay in float32, the others do
    not.
    """
    model = build(
        "(float[N, 64] x) => (float[N, 64] y) { a = MatMul (x, w)  b = Mul (a, big)  c = MatMul (b, small)  y = MatMul (c, v) }",
        w=random(64, 64),
        big=np.array(1e4, np.float32),
        small=1e-4 * random(64, 64),
        v=0.1 * random(64, 64),
    )
    feeds = {"x": 10 * random(8, 64)}
    calibrated = Runs(**feeds)
    assert np.abs(next(calibrated.observe(model, ["b"]))["b"]).max() > 1e6
    blind, _ = halve(model)
    with np.errstate(all="ignore"):
        assert not np.isfinite(in_float16(blind, feeds)).all()
    after, report = halve(model, calibrated)
    assert kinds(after) == {"w": HALF, "big": FLOAT, "small": FLOAT, "v": HALF}
    assert "result b reaches" in reason(report, "Mul_1")
    assert "input b reaches" in reason(report, "MatMul_2")
    assert error(model, after, **feeds) < TOLERANCE
    expected = run(model, feeds)["y"]
    assert np.abs(in_float16(after, feeds) - expected).max() < TOLERANCE * np.abs(expected).max()


def test_the_margin_is_kept() -> None:
    model, feeds = chain("y = MatMul (r, v)", v=random(64, 64)), {"x": 100 * random(8, 64)}
    assert halve(model, Runs(**feeds), margin=1.0)[1].metrics["float16_nodes"] == 3
    assert halve(model, Runs(**feeds), margin=1e4)[1].metrics["float16_nodes"] == 0
    assert halve(model, Runs(**feeds), margin=1e4, ranges="weights")[1].metrics["float16_nodes"] == 3


def test_values_below_the_normal_numbers_stay() -> None:
    after, report = halve(chain("y = MatMul (r, v)", v=random(64, 64)), Runs(x=1e-8 * random(8, 64)))
    assert "loses bits" in reason(report, "MatMul_0")
    assert HALF not in kinds(after).values()


def test_a_weight_beyond_float16_stays() -> None:
    v = random(64, 64)
    v[3, 4] = 7e4
    after, report = halve(chain("y = MatMul (r, v)", v=v))
    assert kinds(after) == {"w": HALF, "v": FLOAT}
    assert reason(report, "MatMul_2") == "v reaches 7e+04, and float16 ends at 65504"


def test_a_weight_too_small_for_float16_stays() -> None:
    after, report = halve(chain("y = MatMul (r, v)", v=1e-7 * random(64, 64)))
    assert kinds(after)["v"] == FLOAT
    assert "float16 would change v by" in reason(report, "MatMul_2")


def test_an_epsilon_that_would_be_zero_stays() -> None:
    _, report = halve(
        chain("e = Add (r, eps)  y = MatMul (e, v)", v=random(64, 64), eps=np.array(1e-12, np.float32))
    )
    assert reason(report, "Add_2") == "eps is 1e-12, which is no float16 number"


def test_new_zeros_of_a_sparse_weight_are_told() -> None:
    v = random(64, 64)
    v[:32], v[40, :5] = 0, 1e-9
    model = chain("y = MatMul (r, v)", v=v)
    model.metadata_props.add(key="lathe.sparse", value='{"v": "unstructured"}')
    after, report = halve(model)
    stored = onnx.numpy_helper.to_array(
        next(tensor for tensor in after.graph.initializer if tensor.name == "v")
    )
    assert not stored[:32].any()
    assert report.metrics["new_zeros"] == 5
    assert any("5 small values became zero beside those that must stay" in edit.what for edit in report.edits)


def test_softmax_stays_unless_asked() -> None:
    model = chain("s = Softmax (r)  y = MatMul (s, v)", v=random(64, 64))
    after, report = halve(model)
    assert ops(after) == ["Cast", "MatMul", "Relu", "Cast", "Softmax", "Cast", "MatMul", "Cast"]
    assert "keep={Softmax: false}" in reason(report, "Softmax_2")
    assert ops(halve(model, keep={"Softmax": False})[0]) == [
        "Cast",
        "MatMul",
        "Relu",
        "Softmax",
        "MatMul",
        "Cast",
    ]
    assert kinds(halve(model, keep={"MatMul_3": True})[0]) == {"w": HALF, "v": FLOAT}
    with pytest.raises(
        UsageError,
        match=r"float16\(keep=\.\.\.\): no node, operator or tensor is named 'Matmul_3'; did you mean",
    ):
        halve(model, keep={"Matmul_3": True})


def test_one_cast_serves_all_readers_and_outputs_keep_their_names() -> None:
    text = "(float[N, 64] x) => (float[N, 64] y, float[N, 64] z) { y = MatMul (x, w)  a = MatMul (y, v)  z = Add (a, y) }"
    model = build(text, w=random(64, 64), v=random(64, 64))
    after, _ = halve(model)
    assert ops(after).count("Cast") == 3
    assert error(model, after, x=random(4, 64)) < TOLERANCE


def test_casts_of_the_model_take_part() -> None:
    text = "(int8[N, 64] x) => (float[N, 64] y) { f = Cast <to = 1> (x)  h = MatMul (f, w)  c = Cast <to = 10> (h)  d = Cast <to = 1> (c)  "
    model = build(text + "y = MatMul (d, v) }", w=random(64, 64), v=random(64, 64))
    after, _ = halve(model)
    assert ops(after) == ["Cast", "MatMul", "MatMul", "Cast"]
    feeds = {"x": np.arange(256, dtype=np.int8).reshape(4, 64) % 5}
    assert error(model, after, **feeds) < TOLERANCE


def test_a_constant_node_becomes_an_initializer() -> None:
    model = chain(
        "k = Constant <value = float[1] {0.5}> ()  m = Mul (r, k)  y = MatMul (m, v)", v=random(64, 64)
    )
    after, _ = halve(model)
    assert "Constant" not in ops(after)
    assert kinds(after)["k"] == HALF


def test_what_a_body_captures_stays_float32() -> None:
    branch = "(bool c, float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  s = If (c) <then_branch = t () => (float[N, 64] p) "
    text = (
        branch
        + "{ p = Relu (h) }, else_branch = e () => (float[N, 64] q) { q = Neg (h) }>  y = MatMul (s, v) }"
    )
    model = build(text, w=random(64, 64), v=random(64, 64))
    after, report = halve(model)
    assert reason(report, "If_1") == "If stays in float32"
    assert set(kinds(after).values()) == {HALF}
    assert error(model, after, c=np.array(False), x=random(4, 64)) < TOLERANCE


def test_int8_layers_get_float16_scales() -> None:
    model = build(
        "(float[N, 64] x) => (float[N, 64] y) { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  "
        "e = DequantizeLinear <axis = 1> (wq, ws, wz)  h = MatMul (d, e)  y = MatMul (h, v) }",
        s=np.array(0.03, np.float32),
        z=np.array(0, np.int8),
        wq=(20 * random(64, 64)).clip(-127, 127).astype(np.int8),
        ws=np.append(np.full(63, 0.01), 1e-8).astype(np.float32),
        wz=np.zeros(64, np.int8),
        v=random(64, 64),
    )
    after, _ = halve(model)
    assert after.opset_import[0].version == 19
    assert {name: kinds(after)[name] for name in ("s", "ws", "v")} == dict.fromkeys(("s", "ws", "v"), HALF)
    scales = onnx.numpy_helper.to_array(
        next(tensor for tensor in after.graph.initializer if tensor.name == "ws")
    )
    assert (scales > 0).all()
    # a level may tip to its neighbour
    assert error(model, after, x=random(4, 64).clip(-3, 3)) < 2 * TOLERANCE


def test_a_part_without_weights_stays() -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    after, report = halve(model)
    assert after is model
    assert (
        reason(report, "Relu_0") == "float16 would save 0 bytes of constants here and add 200 of Cast nodes"
    )


@pytest.mark.parametrize(
    "recipe", ["float16,prune(sparsity=0.5)", "float16,codebook", "float16,int8", "float16,retrain"]
)
def test_what_must_come_first(recipe: str) -> None:
    with pytest.raises(UsageError, match=r"must come (before|after)"):
        Recipe(steps=parse_calls(recipe, "pass")).passes()


def test_rounding_counts() -> None:
    found = half.rounding(np.array([0, 1, 7e4, 1e-9, -1e-5, np.inf], np.float32))
    assert (found.overflows, found.zeros, found.subnormals, found.worst) == (1, 1, 1, 1.0)


def test_the_option_that_a_reason_names_can_be_given_as_it_stands() -> None:
    model = chain("s = Softmax (r)  y = MatMul (s, v)", v=random(64, 64))
    advice = re.search(r"keep=\{.*\}", reason(halve(model)[1], "Softmax_2"))
    assert advice is not None
    (step,) = Recipe(steps=parse_calls(f"float16({advice.group()})", "pass")).passes()
    _, report = apply_pass(step, model, Context())
    assert not report.skips


ENCODER = """(float[N,3,64] x) => (float[a,b,c] y) {{
    n = LayerNormalization(x, scale, shift)
    {operand}
    m = MatMul({order}) s = Add(m, bias) y = Relu(s)
}}"""


@pytest.mark.parametrize(
    ("operand", "order"),
    [
        ("o = Transpose<perm=[1,0,2]>(n)", "o, w"),
        ("i = Identity(n) t = Transpose<perm=[1,0,2]>(i) o = Identity(t)", "o, w"),
        (
            "t = Transpose<perm=[2,0,1]>(n) u = Transpose<perm=[1,2,0]>(t) o = Transpose<perm=[1,0,2]>(u)",
            "o, w",
        ),
        ("o = Transpose<perm=[1,2,0]>(n)", "v, o"),
    ],
)
def test_a_transpose_that_would_crash_onnx_runtime_stays(operand: str, order: str) -> None:
    weights = {
        "w": random(64, 80),
        "v": random(96, 64),
        "bias": random(1),
        "scale": random(64),
        "shift": random(64),
    }
    model = build(ENCODER.format(operand=operand, order=order), **weights)
    after, report = halve(model)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Transpose")
    said = [skip.reason for skip in report.skips if "crashes on it" in skip.reason]
    assert said
    inferred = onnx.shape_inference.infer_shapes(after).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert types[last.output[0]] == FLOAT
    ort.survive(after)
    assert error(model, after, x=random(2, 3, 64)) < TOLERANCE


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[0,2,1]>(n) y = MatMul(v, t)",
        "t = Transpose<perm=[1,0,2]>(n) u = Transpose<perm=[1,2,0]>(n) p = MatMul(t, u) y = MatMul(v3, p)",
    ],
)
def test_transposes_that_fuse_well_become_float16(body: str) -> None:
    weights = {"v": random(96, 64), "v3": random(3, 9, 2), "scale": random(64), "shift": random(64)}
    model = build(
        f"(float[2,3,64] x) => (float[a,b,c] y) {{ n = LayerNormalization(x, scale, shift) {body} }}",
        **weights,
    )
    _, report = halve(model)
    assert not [skip for skip in report.skips if "crashes" in skip.reason]


@pytest.mark.parametrize("declared", [[2, "seqlen"], ["a", "b", "c"]])
def test_a_declared_output_shape_outlives_a_value_info_without_one(declared: list[int | str]) -> None:
    """As quantizers leave it behind: value_info of the same name as the output, without a shape."""
    model = build(
        "(float[2,64] x) => (float[N] y) { m = MatMul(x, w) y = Reshape(m, s) }",
        w=random(64, 80),
        s=np.array([2, 80, 1]),
    )
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", FLOAT, declared))
    bare = onnx.helper.make_tensor_value_info("y", FLOAT, None)
    model.graph.value_info.append(bare)
    before = signature(model)
    after, report = apply_pass(configure(find("float16"), {}), model, Context())
    assert report.edits
    assert signature(after) == before


def test_an_input_with_a_default_is_measured_at_its_default() -> None:
    """It is no constant, since a caller may give another value, and calibration data need not have it."""
    model = build("(float[N, 8] x, float[8, 4] w) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    after = rewrite(model, "float16", data={"x": random(20, 8)})
    assert signature(after) == signature(model)
    big = build(
        "(float[N, 8] x, float[8, 4] w) => (float[N, 4] y) { y = MatMul (x, w) }", w=30_000 * random(8, 4)
    )
    assert ops(rewrite(big, "float16", data={"x": random(20, 8)})) == ["MatMul"]
