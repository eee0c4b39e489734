"""Before training: does PyTorch compute what ONNX Runtime computes? If not, which node differs first?"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch

from onnx_lathe.errors import DataError, PassError
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.files.signature import fixed_batch, model_inputs
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.runtime.torch_bridge.calls import joined

SAMPLES = 8
TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest magnitude."""

HALF_TOLERANCE = 2e-2
"""The same where a weight or an activation is in half precision."""

QUANTIZED_TOLERANCE = 2e-2
"""With QuantizeLinear: root mean square of the difference, relative to that of the output. Sums taken in
another order differ in their last bits, and one that lies between two steps is then rounded the other
way; so single elements may be a whole step off.
"""

_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
Arrays = Mapping[str, np.ndarray]


def check(model: onnx.ModelProto, module: GraphModule, data: DataSource) -> None:
    """Runs both on the data's first samples. A graph that turns out to work at its own batch size only is
    then run at that size.

    Raises PassError naming the first node that differs, DataError if there are no samples.
    """
    fixed = fixed_batch([spec.shape for spec in model_inputs(model)])
    batch = next(iter(data.batches(SAMPLES - 1 if fixed == SAMPLES else SAMPLES)), None)
    if batch is None:
        raise DataError("the training data has no samples")
    comparison = _Comparison(model)
    if batch.per_call:
        module.per_call = True
        if not comparison.agree(_results(module, batch.inputs), _reference_by_call(model, batch)):
            _refuse(comparison.culprit(module, batch.call(0)))
        return
    wanted = _reference(model, batch.inputs, batch.count, fixed)
    if fixed is None or batch.count != fixed:
        try:
            if comparison.agree(_results(module, batch.inputs), wanted):
                return
        except (
            RuntimeError,
            IndexError,
            ValueError,
        ):  # shapes that fit one batch size only; what else is wrong shows below
            if fixed is None:
                raise
    if fixed is not None:
        module.fixed_batch = fixed
        if comparison.agree(_results(module, batch.inputs), wanted):
            return
    _refuse(comparison.culprit(module, _piece(batch.inputs, 0, fixed or batch.count)))


def _refuse(culprit: str) -> None:
    raise PassError(
        f"PyTorch computes something else than ONNX Runtime: {culprit}; leave training out, and report it"
    )


class _Comparison:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        nodes = model.graph.node
        self.quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
        stored = any(tensor.data_type in _HALVES for tensor in model.graph.initializer)
        cast = any(
            attribute.name == "to" and attribute.i in _HALVES
            for node in nodes
            for attribute in node.attribute
        )
        self.tolerance = (
            QUANTIZED_TOLERANCE if self.quantized else HALF_TOLERANCE if stored or cast else TOLERANCE
        )

    def agree(self, results: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
        return all(
            self.difference(result, want) <= self.tolerance
            for result, want in zip(results, wanted, strict=True)
        )

    def difference(self, result: np.ndarray, want: np.ndarray) -> float:
        """Relative difference of two float tensors as the tolerance means it; 0 for integers, where a tie
        may fall either way.
        """
        if result.shape != want.shape:
            return np.inf
        if want.size == 0 or not np.issubdtype(want.dtype, np.floating):
            return 0.0
        both = np.isfinite(want) & np.isfinite(result)
        if not np.array_equal(np.where(both, 0, want), np.where(both, 0, result), equal_nan=True):
            return np.inf
        exact = np.where(both, want, 0).astype(np.float64)
        error = np.where(both, result, 0) - exact
        if self.quantized:
            size, error_size = np.sqrt(np.mean(exact**2)), np.sqrt(np.mean(error**2))
        else:
            size, error_size = np.abs(exact).max(), np.abs(error).max()
        return float(error_size / max(size, 1e-12))

    def culprit(self, module: GraphModule, feeds: Arrays) -> str:
        """The first node, in the order of the graph, with an output that differs."""
        traced = onnx.ModelProto()
        traced.CopyFrom(self.model)
        del traced.graph.output[:]
        traced.graph.output.extend(
            onnx.ValueInfoProto(name=name) for node in self.model.graph.node for name in node.output if name
        )
        wanted = ort.run(ort.session(traced, optimized=False), feeds)
        with torch.no_grad():
            for node, name, value in module.trace(**{name: to_torch(array) for name, array in feeds.items()}):
                if not isinstance(value, torch.Tensor):  # a sequence
                    continue
                difference = self.difference(value.double().numpy(), wanted[name].astype(np.float64))
                if difference > self.tolerance:
                    return f"node '{node.name or name}' ({node.op_type}) differs first, by {difference:.2g} of its output '{name}'"
        return "small differences of many nodes add up"


def _reference(model: onnx.ModelProto, feeds: Arrays, count: int, fixed: int | None) -> list[np.ndarray]:
    session = ort.session(model, optimized=False)
    if fixed is None:
        return list(ort.run(session, feeds).values())
    parts = [list(ort.run(session, _piece(feeds, start, fixed)).values()) for start in range(0, count, fixed)]
    for output, value in zip(model.graph.output, parts[0], strict=True):
        if value.ndim == 0:
            raise PassError(
                f"output '{output.name}' is one number for a whole batch of {fixed}, so that batches cannot be joined; "
                "take the output off the model, or export it with a dynamic batch"
            )
    return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]


def _reference_by_call(model: onnx.ModelProto, batch: Batch) -> list[np.ndarray]:
    session = ort.session(model, optimized=False)
    calls = [ort.run(session, batch.call(row)).values() for row in range(batch.count)]
    found = [joined([to_torch(value) for value in outputs]) for outputs in zip(*calls, strict=True)]
    return [(value.double() if value.is_floating_point() else value).numpy() for value in found]


def _piece(feeds: Arrays, start: int, size: int) -> dict[str, np.ndarray]:
    """`size` samples from `start` on; the last one repeated where there are no more."""
    return {
        name: array[np.minimum(np.arange(start, start + size), len(array) - 1)]
        for name, array in feeds.items()
    }


def _results(module: GraphModule, feeds: Arrays) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = module(**{name: to_torch(array) for name, array in feeds.items()})
    return [output.double().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
