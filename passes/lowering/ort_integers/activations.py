"""Activations: pairs in front of what hands integers on, UINT8 with a zero-point, gates as additions."""

import json

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Node, Tensor, Variable
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import floor_range, hands_on, is_floor
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.lowering.ort_integers.work import ActivationPair, Work, scale_and_zero
from onnx_lathe.passes.numerics.quantization import affine

_MIDDLE = 128


def hand_on(work: Work) -> dict[int, Node]:
    """Puts pairs in front of operators that hand integers on. All of a chain get the scale of the first, if
    it had a pair already.

    A tensor that others read too stays as it is: the range of one reader would clip what the others get.
    Returns, by a QuantizeLinear's identity, the Q or DQ above, whose scale and zero-point it takes.
    """
    followed: dict[int, Node] = {}
    pairs = {id(pair.source): pair for pair in work.pairs()}
    for pair in pairs.values():
        below, tensor = pair, pair.source
        while (
            tensor.inputs
            and hands_on(tensor.inputs[0], work.placement)
            and not work.is_seen(tensor)
            and len(tensor.outputs) == 1
        ):
            node = tensor.inputs[0]
            tensor = node.inputs[0]
            if is_dequantized(tensor):
                followed[id(below.quantize)] = tensor.inputs[0]
                break
            if id(tensor) in pairs:
                node.inputs[0] = pairs[id(tensor)].dequantize[0].outputs[0]
                followed[id(below.quantize)] = pairs[id(tensor)].quantize
                break
            if len(node.outputs) > 1:
                break  # the range of one part would clip the others
            above = _copy(work, pair, tensor)
            node.inputs[0] = above.dequantize[0].outputs[0]
            followed[id(below.quantize)] = above.quantize
            below = above
    return followed


def _copy(work: Work, pair: ActivationPair, tensor: Tensor) -> ActivationPair:
    """A pair behind `tensor` like another, which nobody reads yet."""
    kind = scale_and_zero(pair.quantize)[1].dtype  # UINT8 in a model that was lowered before
    codes = Variable(work.name(f"{tensor.name}_codes"), kind, tensor.shape)
    result = Variable(work.name(f"{tensor.name}_handed_on"), np.float32, tensor.shape)
    parameters = list(pair.quantize.inputs[1:])
    quantize = Node(
        "QuantizeLinear",
        work.name(f"{tensor.name}_Q"),
        dict(pair.quantize.attrs),
        [tensor, *parameters],
        [codes],
    )
    dequantize = Node("DequantizeLinear", work.name(f"{tensor.name}_DQ"), {}, [codes, *parameters], [result])
    node_metadata(quantize).update(node_metadata(pair.quantize))
    work.graph.nodes += [quantize, dequantize]
    work.report.edit(pair.quantize.name, f"{tensor.name} is quantized before {tensor.outputs[0].name}")
    return ActivationPair(quantize, [dequantize])


def widen(work: Work, pair: ActivationPair, above: Node | None) -> None:
    """Stores the pair as UINT8 with a zero-point over its range; without a range its scale stays.

    `above` is the Q or DQ whose scale and zero-point it takes instead, if it follows one.
    """
    if above is not None:
        _write(pair, _explicit(work, above))
        return
    scale, zero = scale_and_zero(pair.quantize)
    if zero.dtype != np.int8:
        return
    floor = _floor(work, pair)
    ends = _range(pair, scale) if zero == 0 else None
    if ends is None and zero == 0 and floor is not None and floor[0] == 0:
        ends = 0.0, affine.LEVELS * float(scale)  # what the codes could hold
    if ends is not None:
        low, high = (max(ends[0], floor[0]), min(ends[1], floor[1])) if floor is not None else ends
        scale, middle = affine.unsigned_scale(low, high)
    else:
        middle = np.uint8(int(zero) + _MIDDLE)
    while floor is not None and _ends_within(floor, float(scale), int(middle)):
        _take_floor(pair)
        floor = _floor(work, pair)
    name = pair.source.name
    stored: dict[str, np.ndarray] = {
        f"{name}_scale": np.asarray(scale, np.float32),
        f"{name}_zero": np.asarray(middle),
    }
    _write(pair, [work.constant(key, values) for key, values in stored.items()])
    work.report.edit(pair.quantize.name, f"{name} is UINT8: scale {float(scale):.3g}, zero-point {middle}")


def _explicit(work: Work, node: Node) -> list[Tensor]:
    """Scale and zero-point of a Q or DQ; the zero-point of one that leaves it out has the type of its
    integers.
    """
    if len(node.inputs) > 2:
        return list(node.inputs[1:])
    kind = node.inputs[0].dtype if node.op == "DequantizeLinear" else scale_and_zero(node)[1].dtype
    return [
        node.inputs[1],
        work.constant(f"{node.inputs[1].name}_zero", np.zeros(node.inputs[1].shape, kind)),
    ]


def _range(pair: ActivationPair, scale: np.float32) -> tuple[float, float] | None:
    """The calibrated range; as much wider or narrower as training has made the scale since."""
    text = node_metadata(pair.quantize).get(metadata.RANGE)
    if text is None:
        return None
    return affine.trained_range(scale, *json.loads(text))


def _floor(work: Work, pair: ActivationPair) -> tuple[float, float] | None:
    """The ends of the ReLU or Clip in front of the pair, if nothing else reads it; None without one."""
    tensor = pair.source
    if not tensor.inputs or not is_floor(tensor.inputs[0]) or len(tensor.outputs) > 1 or work.is_seen(tensor):
        return None
    low, high = floor_range(tensor.inputs[0])
    return None if low is None or high is None else (low, high)


def _ends_within(floor: tuple[float, float], scale: float, middle: int) -> bool:
    """Whether all levels are within the floor's ends, but for half a step; a lower end of 0 exactly."""
    if floor[0] == 0:
        return middle == 0 and (affine.UNSIGNED_LEVELS - middle) * scale <= floor[1] + scale * 1e-3
    half = scale * 0.501
    return -middle * scale >= floor[0] - half and (affine.UNSIGNED_LEVELS - middle) * scale <= floor[1] + half


def _take_floor(pair: ActivationPair) -> None:
    """What saturates at the zero-point needs no ReLU."""
    node = pair.source.inputs[0]
    pair.quantize.inputs[0] = node.inputs[0]
    disconnect(node)


def _write(pair: ActivationPair, parameters: list[Tensor]) -> None:
    for node in pair.nodes:
        node.inputs = [node.inputs[0], *parameters]
        node.attrs.pop("axis", None)
        node.attrs.pop("output_dtype", None)
    pair.quantize.outputs[0].dtype = parameters[1].dtype if len(parameters) > 1 else np.dtype(np.uint8)


def add_for_gate(work: Work, node: Node) -> None:
    """Turns a HardSigmoid between integers into an addition, which there is a kernel for.

    HardSigmoid(x) = alpha * Clip(x + beta / alpha, 0, 1 / alpha): UINT8 at zero-point 0 clips, and
    reading it by alpha times the scale that wrote it is the product.
    """
    result, alpha, beta = node.outputs[0], node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    if len(result.outputs) != 1 or work.is_seen(result) or not is_dequantized(node.inputs[0]) or alpha <= 0:
        return
    pair = next((pair for pair in work.pairs() if pair.source is result), None)
    if pair is None:
        return
    scale, zero = scale_and_zero(pair.quantize)
    if zero != 0 or zero.dtype != np.uint8 or 255 * float(scale) > 1 + 1e-6:
        return
    shift = beta / alpha
    step = np.asarray(abs(shift) / 255 or 1.0, np.float32)
    code, middle = (np.asarray(255 * value, np.uint8) for value in (shift > 0, shift < 0))
    constants = [
        work.constant(f"{node.name}_{what}", value)
        for what, value in (("shift", code), ("scale", step), ("zero", middle))
    ]
    decoded = Variable(work.name(f"{node.name}_shift_dequantized"), np.float32, [])
    work.graph.nodes.append(
        Node("DequantizeLinear", work.name(f"{node.name}_shift_DQ"), {}, constants, [decoded])
    )
    node.op, node.attrs, node.inputs = "Add", {}, [node.inputs[0], decoded]
    pair.quantize.inputs[1] = work.constant(
        f"{pair.quantize.inputs[1].name}_sum", np.asarray(scale / alpha, np.float32)
    )
    node_metadata(pair.quantize).pop(metadata.RANGE, None)
    work.report.edit(node.name, "HardSigmoid computed as an addition that saturates")
