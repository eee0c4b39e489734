"""Models that a target cannot build, each broken in one way, and what is to be said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support import quantized
from tests.support.quantized import node, stored

FILE = "model.onnx"


@dataclass(frozen=True)
class Broken:
    """One broken model. `write` gets the path to write; `says` are words of the line; `options` those of the target;
    `codes` the exit codes of `optimize build` and of `optimize check`. `builder`: only TensorRT itself finds it.
    """

    name: str
    write: Callable[[Path], None]
    says: tuple[str, ...]
    codes: tuple[int, int] = (4, 4)
    options: str = ""
    builder: bool = False


def model_of(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Writes LeNet in INT8, changed."""

    def write(path: Path) -> None:
        model = quantized.lenet(codebook=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return write


def nodes_of(nodes, inputs, outputs, constants=None, opset: int = 21) -> Callable[[Path], None]:
    """Writes a model of these nodes, unchecked."""

    def values(table):
        return [
            helper.make_tensor_value_info(
                name, *((spec[1], spec[0]) if isinstance(spec, tuple) else (1, spec))
            )
            for name, spec in table.items()
        ]

    def write(path: Path) -> None:
        tensors = [
            numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()
        ]
        graph = helper.make_graph(nodes, "net", values(inputs), values(outputs), tensors)
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(one, 1) for one in {each.domain for each in nodes} - {""}]
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())

    return write


def replaced(name: str, array: object) -> Callable[[Path], None]:
    return model_of(
        lambda model: stored(model)[name].CopyFrom(numpy_helper.from_array(np.asarray(array), name))
    )


def attribute(name: str, key: str, value: int) -> Callable[[Path], None]:
    def change(model: onnx.ModelProto) -> None:
        found = node(model, name)
        for index in reversed(range(len(found.attribute))):
            if found.attribute[index].name == key:
                del found.attribute[index]
        found.attribute.append(helper.make_attribute(key, value))

    return model_of(change)


def external(keep: int | None) -> Callable[[Path], None]:
    """A model with data in another file, of which only the first `keep` bytes are there; None: no file."""

    def write(path: Path) -> None:
        model = quantized.lenet(codebook=False, int8=False)
        onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=100)
        data = path.with_name("model.data")
        if keep is None:
            data.unlink()
        else:
            data.write_bytes(data.read_bytes()[:keep])

    return write


def pair(kind: np.dtype, zero: int, scale: float = 0.1) -> Callable[[Path], None]:
    """x [2, 4] -> Q -> DQ -> y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize"),
    ]
    return nodes_of(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"s": np.float32(scale), "z": np.array(zero, kind)})


def open_sizes(path: Path) -> None:
    """It runs where the last one is 1, which is no usual size."""
    nodes = [helper.make_node("MatMul", ["image", "w"], ["y"], "product")]
    inputs, outputs = {"image": ["n", 1, "h", "w"]}, {"y": ["n", 1, "h", 2]}
    onnx.save(quantized.model(nodes, inputs, outputs, {"w": np.ones((1, 2), np.float32)}), path)


def branch(operator: str, name: str, **attributes: object) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2, 2])
    made = helper.make_node(operator, ["x"], [f"{name}_out"], name, **attributes)
    return helper.make_graph([made], name, [], [output])


def branches(operator: str = "Relu", condition: str = "cond") -> Callable[[Path], None]:
    """If on a value of run time, of whose branches one computes `operator`."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"], "greater"),
        helper.make_node(
            "If",
            [condition],
            ["y"],
            "choose",
            then_branch=branch(operator, "then"),
            else_branch=branch("Abs", "else"),
        ),
    ]
    return nodes_of(nodes, {"x": [2, 2]}, {"y": [2, 2]}, {"zero": np.float32(0)})


def run_time_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["image"], ["now"], "max", keepdims=0))
    for name in ("image_Q", "image_DQ"):
        node(model, name).input[1] = "now"


def cycle(model: onnx.ModelProto) -> None:
    node(model, "conv2").input[0] = "r2"


def one_name(model: onnx.ModelProto) -> None:
    node(model, "relu2").output[0] = "r1"


def not_produced(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def same_names(model: onnx.ModelProto) -> None:
    for each in model.graph.node:
        each.name = "node"


def four_bits(path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s"], ["w"], "weight"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    constants = {"codes": np.ones((4, 4), ml_dtypes.int4), "s": np.float32(0.1)}
    nodes_of(nodes, {"x": [2, 4]}, {"y": [2, 4]}, constants)(path)


def ranks(path: Path) -> None:
    """One branch gives [2], the other [2, 2]."""
    parts = [
        helper.make_graph(
            [made],
            name,
            [],
            [
                helper.make_tensor_value_info(
                    made.output[0], TensorProto.FLOAT, [2] if name == "row" else [2, 2]
                )
            ],
        )
        for name, made in {
            "row": helper.make_node("ReduceSum", ["x", "axes"], ["a"], "reduce", keepdims=0),
            "all": helper.make_node("Abs", ["x"], ["b"], "abs"),
        }.items()
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"], "greater"),
        helper.make_node("If", ["cond"], ["y"], "choose", then_branch=parts[0], else_branch=parts[1]),
    ]
    nodes_of(nodes, {"x": [2, 2]}, {"y": [None, None]}, {"zero": np.float32(0), "axes": np.array([0])})(path)


def in_branch(path: Path) -> None:
    """A pair in INT16 inside one branch."""
    made = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "inside"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"], "back"),
    ]
    info = helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 2])
    nodes = [
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            "choose",
            then_branch=helper.make_graph(made, "yes", [], [info]),
            else_branch=branch("Abs", "else"),
        )
    ]
    constants = {"s": np.float32(0.1), "z": np.int16(0)}
    nodes_of(nodes, {"x": [2, 2], "c": ([], TensorProto.BOOL)}, {"y": [2, 2]}, constants)(path)


def sequence(path: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    value = helper.make_value_info("x", helper.make_sequence_type_proto(tensor))
    node = helper.make_node("SequenceAt", ["x", "first"], ["y"], "at")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [node], "net", [value], [output], [numpy_helper.from_array(np.array(0), "first")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def eight_bit_float(
    layer: str, weight: tuple[int, ...], shape: list[int], result: list[int]
) -> Callable[[Path], None]:
    """x -> Q -> DQ -> layer with a weight in FP8."""
    kind = ml_dtypes.float8_e4m3fn
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], "weight"),
        helper.make_node(layer, ["d", "w"], ["y"], "layer"),
    ]
    constants = {"s": np.float32(0.1), "z": np.array(0, kind), "codes": np.ones(weight, kind)}
    return nodes_of(nodes, {"x": shape}, {"y": result}, constants)


def whole(keep: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(keep(quantized.lenet(codebook=False).SerializeToString())) and None


def qlinear(path: Path) -> None:
    byte = TensorProto.UINT8
    nodes = [helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], "integers")]
    constants = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((1, 1, 1, 1), np.uint8)}
    nodes_of(nodes, {"x": ([1, 1, 4, 4], byte)}, {"y": ([1, 1, 4, 4], byte)}, constants)(path)


RELU = [helper.make_node("Relu", ["x"], ["y"], "relu")]
BROKEN = [
    Broken("scale 0", replaced("p1_scale", np.float32(0)), ("p1_Q", "scale")),
    Broken("negative scale", replaced("w2_scale", np.linspace(-1, 1, 8, dtype=np.float32)), ("w2_DQ", "scale")),
    Broken("scale NaN", replaced("p1_scale", np.float32(np.nan)), ("p1_Q", "scale")),
    Broken("scale 1e-40", replaced("p1_scale", np.float32(1e-40)), ("p1_Q", "scale")),
    Broken("scales of another number", replaced("w2_scale", np.ones(5, np.float32)), ("w2_DQ",), (2, 2)),
    Broken("axis out of range", attribute("w2_DQ", "axis", 7), ("w2_DQ", "axis"), (2, 2)),
    Broken("data missing", external(None), ("model.data", "no such file"), (2, 2)),
    Broken("data too short", external(700), ("model.data", "too short"), (2, 2)),
    Broken("cycle", model_of(cycle), ("conv2",), (2, 2)),
    Broken("custom operator", nodes_of([helper.make_node("Special", ["x"], ["y"], "mine", domain="com.example")], {"x": [2]}, {"y": [2]}), ("mine", "Special"), (2, 2)),
    Broken("truncated", whole(lambda content: content[: len(content) // 2]), (FILE, "truncated"), (2, 2)),
    Broken("garbage", lambda path: path.write_bytes(bytes(range(256)) * 40) and None, (FILE, "not an ONNX model"), (2, 2)),
    Broken("text", lambda path: path.write_text("hello world") and None, (FILE, "not an ONNX model"), (2, 2)),
    Broken("empty", lambda path: path.touch(), (FILE, "is empty"), (2, 2)),
    Broken("folder", lambda path: path.mkdir(), (FILE, "folder"), (2, 2)),
    Broken("no outputs", model_of(lambda model: model.graph.ClearField("output")), ("output",), (2, 2)),
    Broken("sizes without a profile", open_sizes, ("'image'", "dimension 2", "shapes="), (2, 0)),
    Broken("profile of a fixed size", model_of(lambda model: None), ("'image'", "dimension 2", "fixed at 28"), (2, 2), "shapes={image: 1x1x32x32}"),
    Broken("profile that falls", model_of(lambda model: None), ("'image'", "must not fall"), (2, 2), "shapes={image: 8x1x28x28:1x1x28x28:8x1x28x28}"),
    Broken("profile of no input", model_of(lambda model: None), ("imgae", "did you mean 'image'"), (2, 2), "shapes={imgae: 1x1x28x28}"),
    Broken("profile of another rank", model_of(lambda model: None), ("'image'", "4 dimensions"), (2, 2), "shapes={image: 1x784}"),
    Broken("undefined input", model_of(lambda model: node(model, "relu2").input.__setitem__(0, "nothing")), ("relu2", "nothing"), (2, 2)),
    Broken("output not produced", model_of(not_produced), ("nowhere",), (2, 2)),
    Broken("two tensors of one name", model_of(one_name), ("r1",), (2, 2)),
    Broken("text as input", nodes_of([helper.make_node("Identity", ["x"], ["y"], "same")], {"x": ([2], TensorProto.STRING)}, {"y": ([2], TensorProto.STRING)}), ("'x'",), (2, 2)),
    Broken("UINT16", pair(np.uint16, 0), ("quantize", "UINT16")),
    Broken("INT16", pair(np.int16, 0), ("quantize", "INT16")),
    Broken("UINT8 with zero-point 3", pair(np.uint8, 3), ("quantize", "UINT8")),
    Broken("zero-point not 0", pair(np.int8, 3), ("quantize", "zero-point is not 0")),
    Broken("QLinearConv", qlinear, ("integers", "QLinearConv")),
    Broken("scale of run time", model_of(run_time_scale), ("image_Q", "run time")),
    Broken("weight of another shape", replaced("w2_q", np.ones((8, 3, 3, 3), np.int8)), ("conv2",), (2, 2)),
    Broken("weight NaN", nodes_of([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"x": [2, 3]}, {"y": [2, 2]}, {"w": np.full((3, 2), np.nan, np.float32)}), ("product", "NaN")),
    Broken("opset too new", model_of(lambda model: setattr(model.opset_import[0], "version", 99)), (FILE, "opset 99"), (2, 2)),
    Broken("If of other ranks", ranks, ("choose", "2 dimensions")),
    Broken("nodes of one name", model_of(same_names), ("'node'", "one name"), (2, 2)),
    Broken("no such GPU", model_of(lambda model: None), ("SM87", "sm86"), (4, 0), "compute=sm87", builder=True),
    Broken("INT4 for sm75", four_bits, ("weight", "INT4", "sm80"), (4, 4), "compute=sm75+sm86"),
    Broken("5-bit exponent", nodes_of([helper.make_node("DequantizeLinear", ["codes", "s"], ["w"], "weight"), helper.make_node("Add", ["x", "w"], ["y"], "add")], {"x": [2]}, {"y": [2]}, {"codes": np.ones(2, ml_dtypes.float8_e5m2), "s": np.float32(1)}), ("weight", "FLOAT8E5M2")),
    Broken("QLinearConv in a branch", in_branch, ("inside", "INT16")),
    Broken("sequence as input", sequence, ("'x'",), (2, 2)),
    Broken("operator in a branch", branches("Det"), ("then", "Det"), builder=True),
    Broken("shape as input", nodes_of([helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")], {"x": [2, 3], "shape": ([2], TensorProto.INT64)}, {"y": [None, None]}), ("'shape'", "constant")),
    Broken("input of size 0", nodes_of(RELU, {"x": [0, 3]}, {"y": [0, 3]}), ("'x'", "size 0"), (2, 2)),
    Broken("FP8 for sm86", eight_bit_float("MatMul", (4, 4), [2, 4], [2, 4]), ("quantize", "sm89")),
    Broken("complex input", nodes_of([helper.make_node("Identity", ["x"], ["y"], "same")], {"x": ([2], TensorProto.COMPLEX64)}, {"y": ([2], TensorProto.COMPLEX64)}), ("'x'", "COMPLEX64"), (2, 2)),
    Broken("operator of no opset", model_of(lambda model: setattr(node(model, "relu2"), "op_type", "Rleu")), ("relu2", "Rleu"), (2, 2)),
    Broken("weight of another type", model_of(lambda model: stored(model)["b1"].CopyFrom(numpy_helper.from_array(np.zeros(8), "b1"))), ("conv1",), (2, 2)),
    Broken("data of another size", model_of(lambda model: setattr(stored(model)["w2_q"], "raw_data", b"123")), ("w2_q", "size"), (2, 2)),
]  # fmt: skip
