"""INT8 layers that do not pay for TensorRT go back to float: by made-up times, and by rules without them."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import TargetError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering.tensorrt import Lowering
from onnx_lathe.placement import CANONICAL
from onnx_lathe.protocols import Profile, Region
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.placement import IMAGES, RESIDUAL, quantized
from tests.support.placement import network as residual
from tests.support.regions import X, network, on_integers

KEEP, ANY = {"speed": "keep"}, {"speed": "any"}
BY_RULES = "which layers pay in INT8 was decided by published rules, not timed"


class MadeUp:
    """Layers take the milliseconds of two tables, and each that is on integers a border of its own."""

    def __init__(self, integers: dict[str, float], floats: dict[str, float], border: float = 0.1) -> None:
        self.integers, self.floats, self.border = integers, floats, border

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        return self.profile(base).total, self.profile(candidate).total

    def profile(self, model: onnx.ModelProto) -> Profile:
        there = on_integers(model) & self.floats.keys()
        nodes = {
            node.name: (self.integers if node.name in there else self.floats)[node.name]
            for node in model.graph.node
            if node.name in self.floats
        }
        regions = [Region(frozenset({name}), nodes[name] + self.border) for name in there]
        return Profile(nodes, regions, sum(nodes.values()) + self.border * len(regions))


def lowered(
    model: onnx.ModelProto, x: np.ndarray, options: dict, profiler: object | None = None
) -> tuple[onnx.ModelProto, PassReport]:
    made, _ = quantized(model, CANONICAL, x)
    context = Context(placement=CANONICAL, profiler=profiler)  # type: ignore[arg-type]
    return apply_pass(configure(Lowering, options), made, context)


def kept(model: onnx.ModelProto, x: np.ndarray, options: dict = KEEP) -> set[str]:
    return on_integers(lowered(model, x, options)[0])


def skips(report: PassReport) -> dict[str, str]:
    return {skip.node: skip.reason for skip in report.skips}


FLOATS = {"one": 1.0, "two": 1.0, "three": 1.0, "head": 0.2}
FAST = {"one": 0.4, "two": 0.4, "three": 0.4, "head": 0.05}


def test_what_pays_stays() -> None:
    after, report = lowered(network(), X, KEEP, MadeUp(FAST, FLOATS, border=0.05))
    assert on_integers(after) == set(FLOATS)
    assert skips(report) == {}
    assert report.warnings == []


def test_what_does_not_pay_goes_back_with_its_milliseconds() -> None:
    after, report = lowered(network(), X, KEEP, MadeUp(FAST | {"two": 1.2}, FLOATS))
    assert on_integers(after) == set(FLOATS) - {"two"}
    assert skips(report) == {
        "two": "on integers it takes 1.3 ms, with the quantizing around it, in float 1 ms"
    }
    assert report.warnings == []
    quantizers = [node.op_type for node in after.graph.node].count("QuantizeLinear")
    before = lowered(network(), X, ANY)[0]
    assert quantizers == [node.op_type for node in before.graph.node].count("QuantizeLinear") - 1


def test_a_pair_that_others_read_stays() -> None:
    """one's result goes into two, and beside the sum: there is one pair for both."""
    after, _ = lowered(network(), X, KEEP, MadeUp(FAST | {"one": 9.0}, FLOATS))
    assert on_integers(after) == set(FLOATS) - {"one"}
    wanted, found = (ort.run(ort.session(model), {"x": X})["y"] for model in (network(), after))
    assert np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()


def test_the_pair_of_a_residual_addition_goes_with_its_convolution() -> None:
    """The addition becomes part of a convolution in INT8; behind one in float its pair serves nothing."""
    before, _ = lowered(residual(RESIDUAL), IMAGES, ANY)
    (add,) = (node for node in before.graph.node if node.op_type == "Add")
    makers = {name: node.op_type for node in before.graph.node for name in node.output}
    assert "DequantizeLinear" in {makers[name] for name in add.input}
    costs = dict.fromkeys(on_integers(before), 1.0)
    (slow,) = (
        node.name for node in before.graph.node if node.output[0] in add.input and node.op_type == "Conv"
    )
    profiler = MadeUp(dict.fromkeys(costs, 0.2) | {slow: 3.0}, costs, border=0.01)
    after, report = lowered(residual(RESIDUAL), IMAGES, KEEP, profiler)
    assert skips(report).keys() == {slow}
    (add,) = (node for node in after.graph.node if node.op_type == "Add")
    makers = {name: node.op_type for node in after.graph.node for name in node.output}
    assert "DequantizeLinear" not in {makers[name] for name in add.input}


def test_a_network_that_does_not_pay_is_float() -> None:
    after, report = lowered(network(), X, KEEP, MadeUp(dict.fromkeys(FLOATS, 3.0), FLOATS))
    assert "QuantizeLinear" not in {node.op_type for node in after.graph.node}
    assert skips(report).keys() == FLOATS.keys()


def test_any_keeps_all_whatever_the_times() -> None:
    after, report = lowered(network(), X, ANY, MadeUp(dict.fromkeys(FLOATS, 3.0), FLOATS))
    assert on_integers(after) == set(FLOATS)
    assert report.warnings == []


def test_where_nothing_can_be_timed_rules_decide_and_it_is_said() -> None:
    class Broken(MadeUp):
        def profile(self, model: onnx.ModelProto) -> Profile:
            raise TargetError("the engine is not built")

    class TooLarge(MadeUp):
        def profile(self, model: onnx.ModelProto) -> None:
            return None

    for profiler, why in (
        (None, "no GPU that runs the engine is at hand"),
        (Broken(FAST, FLOATS), "it could not be timed: the engine is not built"),
        (TooLarge(FAST, FLOATS), "the model is too large to be timed"),
    ):
        after, report = lowered(network(), X, KEEP, profiler)
        assert on_integers(after) == {
            "one"
        }  # the first of 8 channels; the others have 8 and 8, or a matrix of 8 x 4
        assert (
            skips(report)["head"]
            == "by rule: a matrix of 8 x 4 is too small to gain from INT8, 16 is the least"
        )
        assert skips(report)["two"] == "by rule: a convolution of 8 to 8 channels gains nothing from INT8"
        (warning,) = report.warnings
        assert warning.startswith(f"{BY_RULES} ({why}")
        assert "3 of 4 stay in float; speed=any keeps INT8 everywhere" in warning


def test_a_layer_whose_name_tensorrt_does_not_carry_goes_back_too() -> None:
    model = network()
    (two,) = (node for node in model.graph.node if node.name == "two")
    two.name = "t\0wo"
    after, report = lowered(model, X, KEEP)
    assert on_integers(after) == {"one"}
    assert skips(report).keys() == {"t_wo", "three", "head"}


def test_a_layer_of_the_body_that_always_runs_goes_back_too() -> None:
    made, _ = quantized(network(), CANONICAL, X)
    outer = onnx.ModelProto()
    outer.CopyFrom(made)
    then, other = onnx.GraphProto(name="then"), onnx.GraphProto(name="other")
    then.node.extend(made.graph.node)
    other.node.add(op_type="Constant", output=["none"]).attribute.add(
        name="value", type=onnx.AttributeProto.TENSOR
    ).t.CopyFrom(onnx.numpy_helper.from_array(np.zeros((6, 4), np.float32)))
    then.output.add(name="y")
    other.output.add(name="none")
    del outer.graph.node[:]
    outer.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    outer.graph.node.append(
        onnx.helper.make_node("If", ["always"], ["z"], "choose", then_branch=then, else_branch=other)
    )
    outer.graph.output[0].name = "z"
    after, _ = apply_pass(configure(Lowering, KEEP | {"branches": {"always": True}}), outer, Context())
    assert on_integers(after) == {"one"}


def test_rules_that_change_nothing_give_no_advice() -> None:
    class Broken(MadeUp):
        def profile(self, model: onnx.ModelProto) -> Profile:
            raise TargetError("the engine is not built")

    large = build("(float[N, 32] x) => (float[N, 32] y) { y = MatMul (x, w) }", w=random(32, 32))
    after, report = lowered(large, random(64, 32), KEEP)
    assert len(on_integers(after)) == 1
    assert report.warnings == []
    _, report = lowered(large, random(64, 32), KEEP, Broken({}, {}))
    assert report.warnings == [
        f"{BY_RULES} (it could not be timed: the engine is not built): all 1 stay in INT8"
    ]


def convolution(
    inputs: int, outputs: int, kernel: tuple[int, int], group: int = 1, first: bool = True
) -> set[str]:
    before, read = ("", "x") if first else ("h = Sigmoid (x)", "h")
    made = build(
        f"""(float[N, {inputs}, 6, 6] x) => (float[N, {outputs}, H, W] y) {{
            {before} [layer] y = Conv <group = {group}> ({read}, w) }}""",
        w=random(outputs, inputs // group, *kernel),
    )
    x = np.random.default_rng(0).standard_normal((4, inputs, 6, 6)).astype(np.float32)
    return kept(made, x)


@pytest.mark.parametrize(
    "inputs, outputs, kernel, more, stays",
    [
        (16, 16, (3, 3), {"first": False}, True),
        (16, 12, (3, 3), {"first": False}, True),  # one has 16, the inputs come in steps of 8
        (12, 12, (3, 3), {"first": False}, False),
        (8, 8, (3, 3), {"first": False}, False),
        (8, 8, (3, 3), {}, True),  # the first layer may be small
        (3, 16, (3, 3), {}, True),
        (3, 6, (3, 3), {}, False),
        (3, 16, (1, 3), {}, False),  # no kernel for one that is not square
        (32, 32, (3, 3), {"group": 4, "first": False}, True),
        (32, 32, (1, 1), {"group": 4, "first": False}, False),
        (32, 12, (3, 3), {"group": 4, "first": False}, False),
    ],
)
def test_the_rules_for_convolutions(
    inputs: int, outputs: int, kernel: tuple[int, int], more: dict, stays: bool
) -> None:
    assert convolution(inputs, outputs, kernel, **more) == ({"layer"} if stays else set())


@pytest.mark.parametrize(
    "text, shape, stays",
    [
        ("MatMul (x, w)", (32, 16), True),
        ("MatMul (x, w)", (32, 8), False),
        ("Gemm <transB = 1> (x, w)", (16, 32), True),
        ("Gemm <transB = 1> (x, w)", (1, 32), False),
    ],
)
def test_the_rules_for_matrices(text: str, shape: tuple[int, ...], stays: bool) -> None:
    made = build(f"(float[N, 32] x) => (float[N, M] y) {{ [layer] y = {text} }}", w=random(*shape))
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)  # one row is no reason
    assert kept(made, x) == ({"layer"} if stays else set())


def test_a_float_model_is_not_spoken_of() -> None:
    _, report = apply_pass(configure(Lowering, KEEP), network(), Context(placement=CANONICAL))
    assert report.warnings == []
