"""Reductions along axes, the largest and smallest values and their places, and softmax."""

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open, product
from onnx_lathe.runtime.targets.litert.emitter import BOOL, FLOAT, INT32, INT64, NUMBERS, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

PLAIN = {
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}
OF_TRUTHS = {"ReduceMax": "REDUCE_ANY", "ReduceMin": "REDUCE_ALL"}
AXES_BEHIND = {"ReduceSum": 13}
"""From this opset on the axes are an input; of the other reductions from 18 on."""
MOST_AXES = 6
"""Of a tensor that XNNPACK reduces: with more, it fails instead of leaving the operator to others."""


@operator("ReduceMean", integers=("INT8", "INT16"), data=(0,))
def reduce_mean(node: Node, net: Network) -> None:
    if node.on_integers or net.element(node.inputs[0]) == FLOAT:
        _reduce(node, net, "MEAN")
        return
    raise Unsupported(
        "it takes the mean of integers, which LiteRT rounds in another way: cast its input to float32"
    )


@operator(*PLAIN)
def reduce(node: Node, net: Network) -> None:
    if net.element(node.inputs[0]) == BOOL:
        _reduce(node, net, OF_TRUTHS[node.op])
    else:
        _reduce(node, net, PLAIN[node.op])


def _reduce(node: Node, net: Network, code: str) -> None:
    emit = Emitter(node, net)
    axes, keep = reduced_axes(node, net), bool(node.integer("keepdims", 1))
    source = emit.computed(0, NUMBERS | {BOOL})
    if code in ("REDUCE_MAX", "REDUCE_MIN") and any(0 in emit.dims(source)[axis] for axis in axes):
        raise Unsupported("it takes the largest or smallest of no values")
    if not axes:
        net.name_output(node, source)
    elif emit.rank(source) <= MOST_AXES and (
        node.on_integers or emit.type(source) == net.element(node.outputs[0])
    ):
        fields = {"keepDims": keep}
        net.put(node, code, [source, emit.integers(axes)], "ReducerOptions", **fields)
    else:
        emit.leave(reduced(emit, code, source, axes, keep))


def reduced_axes(node: Node, net: Network) -> list[int]:
    """Axes that are reduced, in order; none where the tensor stays as it is."""
    rank = net.rank(node.inputs[0])
    stays = bool(node.integer("noop_with_empty_axes"))
    if node.opset >= AXES_BEHIND.get(node.op, 18):
        given = net.constant(node.inputs[1], "axes").reshape(-1).tolist() if node.given(1) else []
        if not given and stays:
            return []
    else:
        given = node.integers("axes") or []
    return sorted(int(axis) % rank for axis in given) or list(range(rank))


def reduced(emit: Emitter, code: str, source: int, axes: list[int], keep: bool = True) -> int:
    """A reduction of a tensor of any rank: neighbours that are both reduced, or both stay, become one axis."""
    dims = emit.dims(source)
    if len(dims) <= MOST_AXES:
        return emit.reduce(code, source, axes, keep)
    groups: list[list[int]] = []
    for axis in range(len(dims)):
        if groups and (groups[-1][-1] in axes) == (axis in axes):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > MOST_AXES:
        raise Unsupported(
            f"it reduces every other one of {len(dims)} axes; LiteRT reduces tensors of {MOST_AXES}"
        )
    merged = emit.reshape(source, [product([dims[axis] for axis in group]) for group in groups])
    gone = [place for place, group in enumerate(groups) if group[0] in axes]
    found = emit.reduce(code, merged, gone, keep=True)
    wanted: list[Dim] = [(1, 1) if axis in axes else dim for axis, dim in enumerate(dims)]
    return emit.reshape(found, wanted if keep else [dim for axis, dim in enumerate(dims) if axis not in axes])


@operator("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def reduce_norm(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    axes, keep = reduced_axes(node, net), bool(node.integer("keepdims", 1))
    source = emit.computed(0, NUMBERS)
    if node.op in ("ReduceL2", "ReduceLogSum") and emit.type(source) != FLOAT:
        raise Unsupported("it takes a root or logarithm of integers: cast its input to float32")
    if node.op == "ReduceL1":
        source = emit.magnitude(source)
    elif node.op != "ReduceLogSum":
        source = emit.mul(source, source)
    total = reduced(emit, "SUM", source, axes, keep) if axes else source
    behind = {"ReduceL2": "SQRT", "ReduceLogSum": "LOG"}.get(node.op)
    emit.leave(total if behind is None else emit.unary(behind, total))


@operator("ReduceLogSumExp")
def reduce_log_sum_exp(node: Node, net: Network) -> None:
    """max + log(sum(exp(x - max))), whose exponentials are never too large."""
    emit = Emitter(node, net)
    axes, keep = reduced_axes(node, net), bool(node.integer("keepdims", 1))
    source = emit.computed(0, {FLOAT})
    if any(0 in emit.dims(source)[axis] for axis in axes):
        raise Unsupported("it takes the logarithm of the sum of no values")
    if not axes:
        emit.leave(emit.unary("LOG", emit.unary("EXP", source)))
        return
    largest = reduced(emit, "REDUCE_MAX", source, axes)
    powers = emit.unary("EXP", emit.sub(source, largest))
    found = emit.add(emit.unary("LOG", reduced(emit, "SUM", powers, axes)), largest)
    dims = [dim for axis, dim in enumerate(emit.dims(source)) if axis not in axes]
    emit.leave(found if keep else emit.reshape(found, dims))


@operator("ArgMax", "ArgMin")
def arg(node: Node, net: Network) -> None:
    """The first of several equal ones, or the last: then it is looked for from the end."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT, INT32})
    dims = emit.dims(source)
    axis = node.integer("axis") % len(dims)
    last = node.integer("select_last_index")
    if last:
        source = emit.op("REVERSE_V2", [source, emit.integers([axis])], None, None, "ReverseV2Options")
    code, options = ("ARG_MAX", "ArgMaxOptions") if node.op == "ArgMax" else ("ARG_MIN", "ArgMinOptions")
    kept = [*dims[:axis], *dims[axis + 1 :]]
    place = emit.op(code, [source, emit.scalar(axis)], kept, INT64, options, outputType=INT64)
    if last:
        if is_open(dims[axis]):
            raise Unsupported(f"the size of its axis {axis} depends on the size of the input")
        place = emit.sub(emit.number(dims[axis][0] - 1, INT64), place)
    emit.leave(emit.expand_dims(place, axis) if node.integer("keepdims", 1) else place)


@operator("Softmax", "LogSoftmax", integers=("INT8",))
def softmax(node: Node, net: Network) -> None:
    """Along the last axis; another one is moved there and back. Before opset 13 it and all behind it are one."""
    emit = Emitter(node, net)
    emit.in_float = (
        node.on_integers and node.op == "LogSoftmax"
    )  # whose kernel on integers has a scale of its own
    source = emit.operand(0)
    dims = emit.dims(source)
    axis = node.integer("axis", -1 if node.opset >= 13 else 1) % max(len(dims), 1)
    if axis == len(dims) - 1 and not emit.in_float:
        _put_softmax(node, net, source)
        return
    if node.opset < 13:
        flat = emit.reshape(source, [product(dims[:axis]), product(dims[axis:])])
        emit.leave(emit.reshape(_softmax(emit, flat), dims))
        return
    turned, back = emit.moved(source, axis, max(len(dims) - 1, 0))
    emit.leave(emit.transpose(_softmax(emit, turned), back))


def _softmax(emit: Emitter, place: int) -> int:
    if emit.node.op == "LogSoftmax":
        return emit.unary("LOG_SOFTMAX", place)
    return emit.softmax(place)


def _put_softmax(node: Node, net: Network, source: int) -> None:
    if node.op == "LogSoftmax":
        net.put(node, "LOG_SOFTMAX", [source], "LogSoftmaxOptions")
    else:
        net.put(node, "SOFTMAX", [source], "SoftmaxOptions", beta=1.0)


@operator("CumSum")
def cumulative_sum(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, NUMBERS)
    axis = int(net.constant(node.inputs[1], "axis").reshape(-1)[0]) % emit.rank(source)
    fields = {"exclusive": bool(node.integer("exclusive")), "reverse": bool(node.integer("reverse"))}
    emit.leave(emit.op("CUMSUM", [source, emit.scalar(axis)], None, None, "CumsumOptions", **fields))


@operator("TopK")
def top_k(node: Node, net: Network) -> None:
    """TOPK_V2 takes the largest along the last axis; the smallest are the largest of the negated."""
    emit = Emitter(node, net)
    source = emit.computed(0, NUMBERS)
    count = node.attributes.get("k") if node.opset < 10 else None
    if count is None:
        count = int(net.constant(node.inputs[1], "k").reshape(-1)[0])
    node.integer("sorted", 1)  # what need not be in order may be
    axis = node.integer("axis", -1) % emit.rank(source)
    turned, back = emit.moved(source, axis, emit.rank(source) - 1)
    smallest = not node.integer("largest", 1)
    if smallest:
        turned = emit.unary("NEG", turned)
    dims = (*emit.dims(turned)[:-1], (count, count))
    values, places = emit.several(
        "TOPK_V2", [turned, emit.scalar(count)], [(dims, emit.type(turned)), (dims, INT32)], "TopKV2Options"
    )
    if node.outputs[0]:
        values = emit.unary("NEG", values) if smallest else values
        emit.leave(emit.transpose(values, back), 0)
    if node.outputs[1]:
        emit.leave(emit.transpose(places, back), 1)
