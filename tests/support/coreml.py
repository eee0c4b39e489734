"""Models as Core ML's packages, and what these compute, read back and evaluated in NumPy, beside ONNX Runtime."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.coreml.convert import Conversion, convert
from onnx_lathe.runtime.targets.coreml.form import Form
from onnx_lathe.runtime.targets.coreml.sizes import Sizes, batch_range, parse_shapes, sizes_of
from onnx_lathe.runtime.targets.coreml.writing import read_back, write
from tests.support.mil import evaluate

PLAIN = Form()
LATEST = Form("iOS18")


def sized(model: onnx.ModelProto, shapes: Mapping[str, str] | None = None, batch: str = "1:4") -> Sizes:
    return sizes_of(model, parse_shapes(shapes or {}), batch_range(batch))


def branched(model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
    """With the branches taken that the sizes decide, as the lowering does."""
    while chosen := decided(model, sizes.first, sizes.second()):
        graph = import_model(model)
        take_branches(graph, chosen, PassReport())
        model = export_model(graph)
    return model


def converted(model: onnx.ModelProto, sizes: Sizes | None = None, form: Form = PLAIN) -> Conversion:
    return convert(model, sizes or sized(model), form)


def refusals(
    model: onnx.ModelProto, sizes: Sizes | None = None, form: Form = PLAIN
) -> list[tuple[str, str, str]]:
    return list(converted(model, sizes, form).refused)


def computed(
    written: Conversion, form: Form, calls: list[dict[str, np.ndarray]], package: bool = False
) -> list[dict[str, np.ndarray]]:
    """Outputs of each call, by the model's names: of the program, or of the package that is written and read back."""
    assert not written.refused, written.refused
    program = written.program
    if package:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.mlpackage"
            write(written, form, path, None, {})
            program = read_back(path)
    found = []
    for call in calls:
        feeds = {port.name: call[port.tensor].astype(port.kind) for port in written.inputs}
        outputs = evaluate(program, feeds)
        found.append({port.tensor: outputs[port.name] for port in written.outputs})
    return found


def agree(
    model: onnx.ModelProto,
    sizes: Sizes | None = None,
    form: Form = PLAIN,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-4,
    floor: float = 0.0,
    package: bool = False,
) -> Conversion:
    """Asserts that the program computes what ONNX Runtime does, at the sizes and, where some are open, at others: each
    output within `tolerance` of its largest value, or of `floor` if that is more.
    """
    sizes = sizes or sized(model)
    model = branched(model, sizes)
    written = convert(model, sizes, form)
    shapes = [sizes.first, sizes.second()] if sizes.open else [sizes.first]
    calls = (
        [dict(feeds)]
        if feeds is not None
        else [random_feeds(model, one, seed) for seed, one in enumerate(shapes)]
    )
    session = ort.session(model, optimized=False)
    for call, got in zip(calls, computed(written, form, calls, package), strict=True):
        for name, value in ort.run(session, call).items():
            assert got[name].shape == value.shape, (name, got[name].shape, value.shape)
            worst = difference(got[name], value, floor)
            assert worst <= tolerance, (name, worst)
    return written


def difference(got: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference, relative to the largest value or to `floor`; of integers and bools, how many of them differ."""
    if wanted.dtype.kind != "f":
        return float(np.mean(got != wanted)) if wanted.size else 0.0
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    largest = max(float(np.abs(other[np.isfinite(other)]).max(initial=0.0)), floor, 1e-6)
    found = float(np.where(same, 0.0, np.abs(one - other)).max(initial=0.0)) / largest
    return found if np.isfinite(found) else float("inf")


def random_feeds(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return {
        name: generator.standard_normal(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        if types[name] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        else generator.integers(0, 4, shape).astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        for name, shape in shapes.items()
    }


def kinds(written: Conversion) -> list[str]:
    """Types of the operations, without constants."""
    return [op.op_type for op in written.program.functions["main"].operations if op.op_type != "const"]
