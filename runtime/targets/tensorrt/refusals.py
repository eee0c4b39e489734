"""What makes a build with TensorRT fail, apart from quantization: operators, types of single GPUs, inputs that are
shapes, weights that are no numbers. Reads the lowered model; needs no TensorRT.

Operators are those that the parser of TensorRT-RTX 1.7 does not know. A newer one may know more, so that a build
leaves them to it; `optimize check` names them.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto

from onnx_lathe.engines import LONGEST_NAME, carries
from onnx_lathe.runtime.targets.core.base import LAYERS
from onnx_lathe.runtime.targets.tensorrt.check import Concern, Reader, concerns

_UNKNOWN_OPERATORS = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress ConcatFromSequence
CumProd DFT DeformConv Det ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional
OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique
"""
UNKNOWN_OPERATORS = frozenset(_UNKNOWN_OPERATORS.split())

_ONNX = ("", "ai.onnx")
"""Two names of one domain."""

_DOMAINS = (*_ONNX, "com.microsoft")

_GPUS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT8E4M3FN: ("FP8", 89),
    TensorProto.FLOAT4E2M1: ("FP4", 120),
    TensorProto.INT4: ("INT4", 80),
    TensorProto.BFLOAT16: ("BF16", 80),
}
"""Type -> its name, and the first GPU architecture that has it."""

PIECE = 1 << 22
"""Elements of a weight that are looked at in one go."""

RECURRENT = ("GRU", "LSTM", "RNN")

_NO_TENSORS = (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)

_SHAPE_INPUTS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2),
    "Resize": (3,),
    "TopK": (1,),
}
_SHAPE_ARITHMETIC = ("Cast", "Concat", "Gather", "Identity", "Squeeze", "Unsqueeze")


def fatal(model: onnx.ModelProto, compute: Sequence[str] = ()) -> list[Concern]:
    """All that is known to fail in a build for these GPUs, such as `sm86`."""
    found = [concern for concern in concerns(model) if concern.fatal]
    reader = Reader(model.graph)
    found += [
        *_names(model.graph),
        *_inputs(reader),
        *_gpus(reader, compute),
        *_weights(reader),
        *_branches(reader),
        *_states(reader),
    ]
    return found


def unknown_operators(
    model: onnx.ModelProto, lacking: Mapping[str, str] = MappingProxyType({})
) -> list[Concern]:
    """Those that no parser tried here knows; functions of the model are looked into by the parser alone. `lacking`:
    operators that this one has not, with the reason.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    found = []
    for node, name in _all_nodes(Reader(model.graph)):
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in _DOMAINS:
            what = f"TensorRT has no operator {node.domain}.{node.op_type}"
            found.append(Concern(name, f"{what}; export the model without it", True, node.op_type))
        elif node.op_type in UNKNOWN_OPERATORS and node.domain in _ONNX:
            what = f"the operator {node.op_type} is not known to TensorRT"
            found.append(Concern(name, f"{what}; export the model without it", True, node.op_type))
        elif node.op_type in lacking and node.domain in _ONNX:
            found.append(Concern(name, lacking[node.op_type], True, node.op_type))
    return found


def _all_nodes(reader: Reader) -> Iterator[tuple[onnx.NodeProto, str]]:
    for node, name in reader.nodes():
        yield node, name
        for body in reader.bodies(node):
            yield from _all_nodes(body)


def _readers(reader: Reader) -> Iterator[Reader]:
    yield reader
    for node in reader.graph.node:
        for body in reader.bodies(node):
            yield from _readers(body)


def _inputs(reader: Reader) -> Iterator[Concern]:
    shapes = _shape_tensors(reader)
    for value in reader.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name in reader.constants:
            continue
        if kind in _NO_TENSORS or not value.type.HasField("tensor_type"):
            name = TensorProto.DataType.Name(kind) if kind else value.type.WhichOneof("value")
            reason = f"it is {name}, which TensorRT does not take; cut it off the model"
            yield Concern(f"input '{value.name}'", reason, True, "input")
        elif value.name in shapes:
            reason = (
                f"it decides the shape of a tensor ({shapes[value.name]}); make it a constant of the model"
            )
            yield Concern(f"input '{value.name}'", reason, True, "input")


def _names(graph: onnx.GraphProto) -> Iterator[Concern]:
    """Of inputs and outputs, which stay as callers know them."""
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if not carries(value.name):
                shown = value.name[:40] + "..." * (len(value.name) > 40)
                why = (
                    "holds a NUL character" if "\0" in value.name else f"is longer than {LONGEST_NAME} bytes"
                )
                reason = f"its name {why}, which TensorRT does not carry; rename it"
                yield Concern(f"{what} '{shown}'", reason, True, what)


def _shape_tensors(reader: Reader) -> dict[str, str]:
    """Tensor of the main graph -> the node whose result's shape it decides."""
    found: dict[str, str] = {}
    for node, name in reversed(list(reader.nodes())):
        if node.domain not in _ONNX:
            continue
        for index in _SHAPE_INPUTS.get(node.op_type, ()):
            if index < len(node.input) and node.input[index]:
                found.setdefault(node.input[index], name)
        owner = next((found[output] for output in node.output if output in found), None)
        if owner is not None and node.op_type in _SHAPE_ARITHMETIC:
            for tensor in node.input:
                found.setdefault(tensor, owner)
    return found


def _gpus(reader: Reader, compute: Sequence[str]) -> Iterator[Concern]:
    """Types that one of the GPUs does not have, each at the first node that has to do with it."""
    said: set[int] = set()
    for part in _readers(reader):
        for node, name in part.nodes():
            for kind in _kinds(part, node):
                if kind not in _GPUS or kind in said:
                    continue
                what, least = _GPUS[kind]
                lacking = [gpu for gpu in compute if int(gpu.lower().removeprefix("sm")) < least]
                if lacking:
                    said.add(kind)
                    reason = f"it is {what}, which needs sm{least} or later, and this build is for {', '.join(lacking)}"
                    yield Concern(name, reason, True, node.op_type)


def _kinds(reader: Reader, node: onnx.NodeProto) -> list[int]:
    """Types of the constants that the node reads, and of what it casts to."""
    stored = [reader.constants[name].data_type for name in node.input if name in reader.constants]
    named = [attribute.i for attribute in node.attribute if attribute.name in ("to", "output_dtype", "dtype")]
    return stored + named


def _weights(reader: Reader) -> Iterator[Concern]:
    for part in _readers(reader):
        for node, name in part.nodes():
            if node.op_type not in LAYERS or node.domain not in _ONNX:
                continue
            for tensor in node.input[1:]:
                stored = part.constants.get(tensor)
                if stored is not None and not _is_finite(stored):
                    reason = (
                        f"its weight '{tensor}' has values that are NaN or infinite; train or export it again"
                    )
                    yield Concern(name, reason, True, node.op_type)


def _is_finite(tensor: TensorProto) -> bool:
    """Piece by piece, for large weights; data in another file is not read."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return True
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.kind != "f":
        return True
    flat = values.reshape(-1)
    return all(np.isfinite(flat[start : start + PIECE]).all() for start in range(0, flat.size, PIECE))


def _branches(reader: Reader) -> Iterator[Concern]:
    """An If on a value of run time whose branches give different numbers of dimensions, where the model says them.

    One on shapes is left to TensorRT, which takes it where they are known when it builds.
    """
    computed = {value.name for value in reader.graph.input} - reader.constants.keys()
    for node, name in reader.nodes():
        if node.op_type == "If" and node.input[0] in computed:
            bodies = [[_rank(value) for value in body.graph.output] for body in reader.bodies(node)]
            for ranks in zip(*bodies, strict=False):
                if None not in ranks and len(set(ranks)) > 1:
                    listed = " and ".join(f"{rank} dimension{'s' * (rank != 1)}" for rank in sorted(ranks))
                    reason = (
                        f"its branches give {listed}; TensorRT wants as many in both: reshape one of them"
                    )
                    yield Concern(name, reason, True, node.op_type)
        if node.op_type in ("Shape", "Size"):
            continue
        if computed.intersection(node.input) or any(True for _ in reader.bodies(node)):
            computed.update(node.output)


def _states(reader: Reader, branch: bool = False) -> Iterator[Concern]:
    """Recurrent layers in a body of If whose first output nobody reads, but another one: the lowering has mended those
    that it could. branch: whether the reader is in such a body.
    """
    read = {value.name for value in reader.graph.output} | _reads(reader)
    for node, name in reader.nodes():
        if branch and node.op_type in RECURRENT and node.domain in _ONNX:
            steps, states = next(iter(node.output), ""), node.output[1:]
            if steps not in read and read.intersection(states):
                reason = (
                    "in a branch, TensorRT fails on a last state where nobody reads the outputs of the steps: read the "
                    "state from these, or make a constant of what decides the branch"
                )
                yield Concern(name, reason, True, node.op_type)
        for body in reader.bodies(node):
            yield from _states(body, branch or node.op_type == "If")


def _reads(reader: Reader) -> set[str]:
    """Of the part's nodes and of bodies in it."""
    found = {name for node in reader.graph.node for name in node.input if name}
    for node in reader.graph.node:
        for body in reader.bodies(node):
            found |= _reads(body) | {value.name for value in body.graph.output}
    return found


def deciding_inputs(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Each If and Loop of the main graph -> the inputs whose values, not only sizes, its condition follows from."""
    reader = Reader(graph)
    values = {value.name: {value.name} for value in graph.input if value.name not in reader.constants}
    found = {}
    for node, name in reader.nodes():
        if node.op_type in ("If", "Loop") and node.domain in _ONNX:
            place = 0 if node.op_type == "If" else 1
            found[name] = sorted(values.get(node.input[place], ()))
        if node.op_type not in ("Shape", "Size"):
            behind = set().union(*(values.get(name, ()) for name in node.input))
            values |= dict.fromkeys(node.output, behind)
    return found


def _rank(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None
