"""Small models through the writer of LiteRT and its interpreter, against ONNX Runtime."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert.convert import Conversion, convert
from onnx_lathe.runtime.targets.litert.file import Contents, pack

KERNELS = ("AUTO", "BUILTIN_REF")
"""Those with XNNPACK, and the reference, which has fewer operators."""
NOT_IN_REFERENCE = frozenset(("CEIL", "ROUND", "ELU", "RANGE", "LOCAL_RESPONSE_NORMALIZATION"))
"""The first three it lacks, RANGE of 64 bits too; its LRN leaves out the last channel of the window."""
TOLERANCE = 1e-5
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in stored
    }


def converted(
    model: onnx.ModelProto, sizes: Shapes | None = None, others: Shapes | None = None
) -> Conversion:
    sizes = shapes_of(model) if sizes is None else sizes
    return convert(model, sizes, sizes if others is None else others)


def packed(found: Conversion) -> bytes:
    assert not found.refused, found.refused
    return pack(Contents(found.network.tensors, found.network.operators, found.inputs, found.outputs))


def run(blob: bytes, feeds: Mapping[str, np.ndarray], kernels: str = "AUTO") -> dict[str, np.ndarray]:
    """Inputs are resized to those that are fed."""
    from ai_edge_litert import interpreter as litert

    found = litert.Interpreter(
        model_content=blob,
        num_threads=1,
        experimental_op_resolver_type=getattr(litert.OpResolverType, kernels),
    )
    signature = found._get_full_signature_list()["serving_default"]
    places = dict(signature["inputs"])
    details = {one["index"]: one for one in found.get_input_details()}
    for name, place in places.items():
        if tuple(details[place]["shape"]) != feeds[name].shape:
            found.resize_tensor_input(place, feeds[name].shape)
    found.allocate_tensors()
    for name, place in places.items():
        found.set_tensor(place, np.array(feeds[name], details[place]["dtype"], order="C"))
    found.invoke()
    return {name: found.get_tensor(place) for name, place in signature["outputs"].items()}


def random_feeds(model: onnx.ModelProto, shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    found = {}
    for name, shape in shapes.items():
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[name])
        if kind == np.bool_:
            found[name] = np.asarray(generator.random(shape) < 0.5)
        elif kind.kind == "f":
            found[name] = np.asarray(generator.standard_normal(shape), kind)
        else:
            low = 0 if kind.kind == "u" else -9
            found[name] = np.asarray(generator.integers(low, 10, shape), kind)
    return found


def kernels_for(codes: Iterable[str]) -> tuple[str, ...]:
    """Those that have all of these operators."""
    return KERNELS[:1] if NOT_IN_REFERENCE.intersection(codes) else KERNELS


def agree(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray] | None = None,
    sizes: Shapes | None = None,
    others: Shapes | None = None,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """The file computes what ONNX Runtime does, relative to the largest value, with both sets of kernels; with `others` at
    those sizes, too. Returns the codes of its operators.
    """
    found = converted(model, sizes, others)
    blob = packed(found)
    codes = [one.code for one in found.network.operators]
    sizes = shapes_of(model) if sizes is None else sizes
    fed = [feeds or random_feeds(model, sizes)]
    if others is not None:
        fed.append(random_feeds(model, others, seed=1))
    for each in fed:
        wanted = ort.run(ort.session(model, optimized=False), each)
        for kernels in kernels_for(codes):
            compare(run(blob, each, kernels), wanted, tolerance, kernels)
    return codes


def compare(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], tolerance: float, what: str
) -> None:
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        got = found[name]
        assert got.shape == expected.shape, (what, name, got.shape, expected.shape)
        if expected.dtype.kind == "f":
            assert got.dtype == np.float32
            finite = expected[np.isfinite(expected)]
            scale = float(np.abs(finite).max(initial=0.0)) or 1.0
            np.testing.assert_allclose(
                got, expected.astype(np.float32), rtol=0, atol=tolerance * scale, err_msg=f"{what} {name}"
            )
        else:
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, err_msg=f"{what} {name}")


def refusals(
    model: onnx.ModelProto, sizes: Shapes | None = None, others: Shapes | None = None
) -> list[tuple[str, str, str]]:
    return list(converted(model, sizes, others).refused)
