"""What the contract refuses and what it lets pass, each rule on a model or on arrays that break it alone."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ContractError, ModelError
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.graph.model import export_model, import_model
from tests.support.builders import build

TWO_LAYERS = "(float[N, 3] x) => (float[N, 3] y) { h = Add (x, bias)\n y = Mul (h, scale) }"
INCONSISTENT = "(float[2, 3] x) => (float[4, 4] y) { y = Relu (x) }"


class Exact(Pass):
    """A lossless pass; the contract looks at its name and its tolerance alone."""

    name = "exact"
    lossless = True
    tolerance = 0.25


def model() -> onnx.ModelProto:
    """Named nodes, no metadata."""
    made = build(TWO_LAYERS, bias=np.ones(3, np.float32), scale=np.full(3, 2, np.float32))
    for node in made.graph.node:
        node.name = node.op_type.lower()
    return made


def changed(
    change: Callable[[onnx.ModelProto], object], start: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(start or model())
    change(other)
    return other


def say(holder: object, key: str, value: str) -> None:
    holder.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


def test_what_is_unchanged_passes() -> None:
    contract.check_structure(model(), model(), "x")


def test_shapes_that_contradict_each_other_are_refused_if_asked_to() -> None:
    wrong = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {INCONSISTENT}')
    with pytest.raises(ModelError, match=r"^the ONNX checker refuses the model: [^\n]{20,}$"):
        contract.check_model(wrong)
    contract.check_model(wrong, strict=False)


def test_a_model_whose_shapes_were_wrong_before_may_stay_so() -> None:
    wrong = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {INCONSISTENT}')
    wrong.graph.node[0].name = "relu"
    contract.check_structure(wrong, wrong, "x")
    right = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g {INCONSISTENT.replace("4, 4", "2, 3")}'
    )
    right.graph.node[0].name = "relu"

    def doubled(one: onnx.ModelProto) -> None:
        one.graph.node[0].CopyFrom(onnx.helper.make_node("Concat", ["x", "x"], ["y"], "relu", axis=1))

    with pytest.raises(ContractError, match="pass 'x' wrote an invalid model"):
        contract.check_structure(right, changed(doubled, right), "x")


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda one: one.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("h", 1, ["N", 3])),
            "output 'h'",
        ),
        (
            lambda one: one.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("z", 1, [1])),
            "input 'z'",
        ),
        (lambda one: one.graph.input[0].type.tensor_type.shape.dim[1].ClearField("value"), "input 'x'"),
    ],
)
def test_an_input_or_output_that_is_new_or_other_is_named(
    change: Callable[[onnx.ModelProto], object], said: str
) -> None:
    with pytest.raises(ContractError, match=f"pass 'x' changed {said}: .* became"):
        contract.check_structure(model(), changed(change), "x")


def test_two_nodes_of_one_name_are_refused() -> None:
    def alike(one: onnx.ModelProto) -> None:
        one.graph.node[1].name = one.graph.node[0].name

    with pytest.raises(ContractError, match="pass 'x' left two nodes of one name"):
        contract.check_structure(model(), changed(alike), "x")


def test_a_new_node_that_says_its_pass_is_let_through() -> None:
    def renamed(one: onnx.ModelProto) -> None:
        one.graph.node[0].name = "made"
        say(one.graph.node[0], "lathe.pass", "x")

    contract.check_structure(model(), changed(renamed), "x")


def test_a_new_node_that_does_not_say_its_pass_is_named() -> None:
    before = model()
    say(before.graph.node[1], "lathe.pass", "y")

    def renamed(one: onnx.ModelProto) -> None:
        one.graph.node[0].name = "made"
        one.graph.node[1].name = "other"  # which says it

    with pytest.raises(ContractError, match=r"^pass 'x' made node 'made' without saying so$"):
        contract.check_structure(before, changed(renamed, before), "x")


def test_names_that_the_import_gave_are_no_new_nodes() -> None:
    nameless = changed(lambda one: one.graph.node[0].ClearField("name"))
    imported = export_model(import_model(nameless))
    assert imported.graph.node[0].name
    contract.check_structure(nameless, imported, "x")
    imported.graph.node[1].name = "made"
    with pytest.raises(ContractError, match="made node 'made'"):
        contract.check_structure(nameless, imported, "x")


def test_zeros_of_a_tensor_that_is_gone_are_refused() -> None:
    gone = '{"bias": "unstructured", "b": "unstructured", "a": "unstructured"}'
    with pytest.raises(ContractError, match=r"left lathe\.sparse naming 'a', which is not in the graph"):
        contract.check_structure(model(), changed(lambda one: say(one, "lathe.sparse", gone)), "x")


@pytest.mark.parametrize("name", ["bias", "h", "y"])
def test_zeros_are_kept_of_any_tensor_of_the_graph(name: str) -> None:
    contract.check_structure(
        model(), changed(lambda one: say(one, "lathe.sparse", f'{{"{name}": "unstructured"}}')), "x"
    )


def test_zeros_are_kept_in_a_body() -> None:
    text = """(bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Add (x, inner) }, else_branch = e () => (float[2] b) { b = Relu (x) }>
    }"""
    before = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {text}')
    branch = before.graph.node[0].attribute[0].g
    branch.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "inner"))
    before.graph.node[0].name = "if"
    for name in ("inner", "b"):
        contract.check_structure(
            before,
            changed(lambda one, name=name: say(one, "lathe.sparse", f'{{"{name}": "2:4"}}'), before),
            "x",
        )


def test_ranges_name_outputs_of_their_node_or_inputs_of_the_model() -> None:
    contract.check_structure(
        model(), changed(lambda one: say(one.graph.node[0], "lathe.range", '{"h": [0, 1]}')), "x"
    )
    contract.check_structure(model(), changed(lambda one: say(one, "lathe.range", '{"x": [0, 1]}')), "x")
    with pytest.raises(ContractError, match=r"lathe\.range of node 'add' naming 'y', which it does not have"):
        contract.check_structure(
            model(), changed(lambda one: say(one.graph.node[0], "lathe.range", '{"y": [0, 1]}')), "x"
        )
    wrong = '{"h": [0, 1], "x": [0, 1], "scale": [0, 1]}'
    with pytest.raises(ContractError, match=r"lathe\.range of the model naming 'h', which it does not have"):
        contract.check_structure(model(), changed(lambda one: say(one, "lathe.range", wrong)), "x")


def with_default() -> onnx.ModelProto:
    made = model()
    made.graph.input.append(onnx.helper.make_tensor_value_info("bias", 1, [3]))
    return made


def set_default(one: onnx.ModelProto, value: float) -> None:
    one.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(3, value, np.float32), "bias"))


def test_defaults_of_inputs_stay() -> None:
    contract.check_structure(with_default(), with_default(), "x")
    before = with_default()
    contract.check_structure(before, before, "x")
    in_fields = changed(lambda one: set_default(one, 1.0), with_default())
    in_fields.graph.initializer[0].ClearField("raw_data")
    in_fields.graph.initializer[0].float_data[:] = [1.0, 1.0, 1.0]
    contract.check_structure(before, in_fields, "x")  # the same values, stored otherwise
    with pytest.raises(ContractError, match="pass 'x' changed the default of input 'bias'"):
        contract.check_structure(before, changed(lambda one: set_default(one, 1.5), with_default()), "x")


def outputs(*values: float, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"y": np.array(values, dtype)}


def not_asked() -> Mapping[str, float]:
    raise AssertionError("rounding is of no matter")


def test_an_output_that_appears_or_goes_is_refused() -> None:
    for before, after in ((outputs(1), {}), ({}, outputs(1))):
        with pytest.raises(contract.OutputMovedError, match="changed whether there is an output 'y'"):
            contract.check_outputs(before, after, Exact)


def test_another_shape_is_no_matter_of_values() -> None:
    with pytest.raises(ContractError, match=r"changed the shape of output 'y': \(2,\) -> \(1,\)") as caught:
        contract.check_outputs(outputs(1, 1), outputs(1), Exact)
    assert not isinstance(caught.value, contract.OutputMovedError)


@pytest.mark.parametrize("sign", [1, -1])
def test_floats_may_differ_by_the_tolerance_of_the_largest(sign: int) -> None:
    before = outputs(sign * 4, 0)
    contract.check_outputs(before, outputs(sign * 4, 1), Exact, not_asked)  # exactly
    with pytest.raises(
        contract.OutputMovedError, match=r"changed output 'y' by 0\.28 relative, allowed is 0\.25"
    ):
        contract.check_outputs(before, outputs(sign * 4, -1.125), Exact)


def test_an_output_of_zeros_may_not_become_other() -> None:
    contract.check_outputs(outputs(0, 0), outputs(0, 0), Exact)
    with pytest.raises(contract.OutputMovedError):
        contract.check_outputs(outputs(0, 0), outputs(0, 1e-6), Exact)


def test_where_an_output_is_finite_stays() -> None:
    infinite, none = outputs(np.inf, 1), outputs(np.nan, np.nan)
    contract.check_outputs(infinite, outputs(np.inf, 1.1), Exact)
    with pytest.raises(contract.OutputMovedError, match="'y' by 1 "):  # of those that are finite
        contract.check_outputs(infinite, outputs(np.inf, 2), Exact)
    contract.check_outputs(none, none, Exact)
    with pytest.raises(contract.OutputMovedError, match="changed where output 'y' is finite"):
        contract.check_outputs(infinite, outputs(1, 1), Exact)
    with pytest.raises(contract.OutputMovedError, match="'z' by 1 "):  # what comes after is looked at too
        contract.check_outputs(none | {"z": np.ones(1)}, none | {"z": np.full(1, 2.0)}, Exact)


def test_rounding_is_measured_once_and_only_if_it_matters() -> None:
    asked = []

    def rounding() -> Mapping[str, float]:
        asked.append(1)
        return {"y": 2.0, "z": 0.25}

    near = {"y": np.array([4.0]), "z": np.array([4.0]), "i": np.arange(200)}
    with pytest.raises(contract.OutputMovedError, match="'z' by"):  # after one that is near
        contract.check_outputs(near, near | {"z": np.array([8.0])}, Exact)
    contract.check_outputs(near, near, Exact, rounding)
    assert not asked
    far = near | {"y": np.array([12.0]), "i": near["i"] + (near["i"] < 2)}
    contract.check_outputs(near, far, Exact, rounding)  # by 8, four times what rounding does
    assert asked == [1]
    with pytest.raises(contract.OutputMovedError, match=r"'y' by 2\.2 relative, allowed is 2$"):
        contract.check_outputs(near, near | {"y": np.array([12.9])}, Exact, rounding)
    with pytest.raises(contract.OutputMovedError, match=r"'z' by 0\.5 relative, allowed is 0\.25"):
        contract.check_outputs(near, far | {"z": np.array([6.0])}, Exact, rounding)
    assert len(asked) == 3


def test_one_integer_in_a_hundred_may_be_another() -> None:
    before = {"i": np.arange(300), "z": np.ones(1)}
    contract.check_outputs(before, before | {"i": before["i"] + (before["i"] < 3)}, Exact, not_asked)
    with pytest.raises(contract.OutputMovedError, match="'z'"):  # what comes after is looked at too
        contract.check_outputs(before, before | {"z": np.zeros(1)}, Exact)
    four = before | {"i": before["i"] + (before["i"] < 4)}
    with pytest.raises(
        contract.OutputMovedError, match=r"changed 1\.33% of the values of output 'i', allowed is 1\.00%"
    ):
        contract.check_outputs(before, four, Exact)
    contract.check_outputs(before, four, Exact, lambda: {"i": 1 / 300})
    with pytest.raises(
        contract.OutputMovedError, match=r"1\.67% of the values of output 'i', allowed is 1\.33%"
    ):
        contract.check_outputs(
            before, before | {"i": before["i"] + (before["i"] < 5)}, Exact, lambda: {"i": 1 / 300}
        )
    with pytest.raises(contract.OutputMovedError, match="'z'"):  # what comes after is looked at too
        contract.check_outputs(before, four | {"z": np.zeros(1)}, Exact, lambda: {"i": 1 / 300})


def test_numbers_of_eight_bits_may_differ_by_one() -> None:
    small = np.array([0, 10, 255, 7], np.uint8)
    assert contract.flipped(small, np.array([1, 9, 254, 7], np.uint8)) == 0
    assert contract.flipped(small, np.array([2, 12, 0, 7], np.uint8)) == 0.75
    assert contract.flipped(small, small.astype(np.int16) + 1) == 1.0
    assert contract.flipped(np.array([-128, 0], np.int8), np.array([127, 1], np.int8)) == 0.5
    assert contract.flipped(np.array(["a", "b"]), np.array(["a", "c"])) == 0.5
    assert contract.flipped(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0.0
    assert contract.flipped(np.zeros(1, np.int64), np.ones(1, np.int64)) == 1.0
