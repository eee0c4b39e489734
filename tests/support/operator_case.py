"""A case of an operator of the bridge: one node with inputs, and what ONNX Runtime gives for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

I64 = np.int64


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + np.float32(0.1)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


@dataclass
class Case:
    """One node. `inputs` are fed; `constants` follow them as initializers (None is an omitted input)."""

    op: str
    inputs: Sequence[np.ndarray]
    constants: Sequence[np.ndarray | None] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    reference: bool = False

    def __str__(self) -> str:
        detail = "-".join(
            f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, TensorProto)
        )
        return f"{self.op}-{self.opset}-{'x'.join(map(str, self.inputs[0].shape)) if self.inputs else ''}-{detail}"[
            :90
        ]


def case(
    op: str,
    *inputs: np.ndarray,
    constants: Sequence[np.ndarray | None] = (),
    opset: int = 21,
    **attributes: Any,
) -> Case:
    return Case(op, inputs, constants, attributes, opset)


def build(item: Case) -> onnx.ModelProto:
    fed = [f"x{index}" for index in range(len(item.inputs))]
    stored = [f"c{index}" if value is not None else "" for index, value in enumerate(item.constants)]
    node = helper.make_node(
        item.op, fed + stored, [f"y{index}" for index in range(item.outputs)], name="node", **item.attributes
    )
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for name, x in zip(fed, item.inputs, strict=True)
    ]
    graph = helper.make_graph(
        [node], "case", typed, [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(value, name) for value, name in zip(item.constants, stored, strict=True) if value is not None],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", item.opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for value in inferred.graph.output:
        if (
            not value.type.tensor_type.elem_type
        ):  # shape inference knows nothing of operators that are functions
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return inferred


def expected(item: Case, model: onnx.ModelProto) -> list[np.ndarray]:
    feeds = {f"x{index}": value for index, value in enumerate(item.inputs)}
    if item.reference:
        return ReferenceEvaluator(model).run(None, feeds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
