"""The MIL program that is being written: the variable that holds each tensor of the model.

Tensors keep their shapes and their order of axes, as ONNX has them. Floats become the program's precision, integers
of all widths int32, which is the one that MIL's operations take; booleans stay.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.form import LARGEST_HALF, Form
from onnx_lathe.runtime.targets.coreml.knowledge import Knowledge
from onnx_lathe.runtime.targets.coreml.names import Names
from onnx_lathe.runtime.targets.coreml.package import builder, quiet
from onnx_lathe.runtime.targets.coreml.weights import Kept, Stored, best, expected, stored_weight

MOST_DIMENSIONS = 5
"""Of a tensor in Core ML (MIL's operations say `rank <= 5`)."""
REFUSED = (
    ValueError,
    TypeError,
    AssertionError,
    NotImplementedError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
)
"""What coremltools raises for what it does not take."""
Move = Callable[[np.ndarray], np.ndarray]


class Network(Knowledge):
    """What builders write to. `sparse`: initializers whose zeros are meant (`lathe.sparse`)."""

    def __init__(
        self,
        facts: Facts,
        nodes: Mapping[str, onnx.NodeProto],
        varying: Set[str],
        form: Form,
        sparse: Set[str] = frozenset(),
    ) -> None:
        super().__init__(facts, nodes, varying)
        self.form = form
        self.sparse = sparse
        self.names = Names()
        self.variables: dict[str, Any] = {}
        self.kept: list[Kept] = []
        self.own: list[Any] = []
        """Variables of `kept`."""
        self._constants: dict[tuple[str, str], Any] = {}
        self._mil = builder()

    # Values

    def number(self, value: float) -> Any:
        """A float parameter in the program's precision."""
        if self.form.precision == "float16" and np.isfinite(value) and abs(value) > LARGEST_HALF:
            raise Unsupported(f"{value:g} is beyond float16: build with precision=float32")
        return self.form.dtype.type(value)

    def epsilon(self, value: float) -> Any:
        """What keeps a division from one by 0, in the program's precision: float16 has nothing as small as 1e-12."""
        return self.form.dtype.type(max(value, float(np.finfo(self.form.dtype).tiny)))

    def variable(self, tensor: str) -> Any:
        """What holds the tensor: computed, or a constant."""
        found = self.variables.get(tensor)
        if found is None:
            found = self.variables[tensor] = self.stored(tensor, self.constant(tensor, f"operand '{tensor}'"))
        return found

    def weight(self, tensor: str, what: str = "weight", move: Move | None = None, way: str = "") -> Any:
        """A constant weight in the form that the model has it in: a codebook, INT8, zeros left out. `move` rearranges
        it, and `way` names that.
        """
        key = (tensor, way)
        if key not in self._constants:
            values = self.constant(tensor, what)
            weight = stored_weight(self, tensor, values)
            self._constants[key] = self._compressed(tensor, weight if move is None else weight.moved(move))
        return self._constants[key]

    def _compressed(self, tensor: str, weight: Stored) -> Any:
        values = self.converted(tensor, weight.values)
        plan = best(weight, values, self.form, tensor in self.sparse)
        if plan is None:
            return self.stored(tensor, weight.values)
        kind, inputs = plan
        made, written = self.several(kind, tensor, **inputs), kind
        if len(made) == 2:  # (mask, the values that are not 0)
            written = "constexpr_sparse_to_dense"
            made = self.several(written, tensor, nonzero_data=made[1], mask=made[0])
        self.own.append(made[0])
        self.kept.append(Kept(made[0].name, written, expected(weight, values, kind)))
        return made[0]

    def stored(self, label: str, values: np.ndarray) -> Any:
        """A constant with these values, as they are."""
        values = self.converted(label, values)
        with quiet():
            variable = self._mil.const(val=values, name=self.names.new(label))
        if values.size > 1:
            self.own.append(variable)
            self.kept.append(Kept(variable.name, "const", values))
        return variable

    def converted(self, label: str, values: np.ndarray) -> np.ndarray:
        """In a type of the program's."""
        values = np.asarray(values)
        if values.dtype == np.bool_:
            return values
        if values.dtype.kind in "iu" and values.dtype.itemsize:
            limits = np.iinfo(np.int32)
            if values.size and (values.min() < limits.min or values.max() > limits.max):
                raise Unsupported(f"constant '{label}' has integers beyond 32 bits")
            return values.astype(np.int32)
        if values.dtype.kind in "cOSU":
            raise Unsupported(f"constant '{label}' is of type {values.dtype}")
        floats = values.astype(np.float32)
        if self.form.precision == "float32":
            return floats
        finite = np.abs(floats[np.isfinite(floats)])
        if finite.size and finite.max() > LARGEST_HALF:
            raise Unsupported(
                f"'{label}' reaches {finite.max():.3g}, beyond float16: build with precision=float32"
            )
        return floats.astype(np.float16)

    # Operations

    def op(self, kind: str, label: str, **inputs: Any) -> Any:
        """Writes an operation whose one result is no tensor of the model. Returns the variable."""
        return self.several(kind, label, **inputs)[0]

    def several(self, kind: str, label: str, **inputs: Any) -> tuple[Any, ...]:
        """The same, with as many results as it has. Raises Unsupported if coremltools refuses it."""
        name = self.names.new(label)
        try:
            with quiet():
                made = getattr(self._mil, kind)(name=name, **inputs)
        except REFUSED as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unsupported(f"coremltools refuses it as {kind}: {said}") from error
        results = tuple(made) if isinstance(made, tuple | list) else (made,)
        for one in results:
            if one.rank > MOST_DIMENSIONS:
                raise Unsupported(f"it has a tensor of {one.rank} dimensions; Core ML has {MOST_DIMENSIONS}")
        return results

    def put(self, node: Node, kind: str, output: int = 0, **inputs: Any) -> None:
        """Writes the operation whose result is the node's."""
        self.leave(node, self.op(kind, node.outputs[output], **inputs), output)

    def leave(self, node: Node, variable: Any, output: int = 0) -> None:
        """Makes a variable that is there the node's result."""
        self.variables[node.outputs[output]] = variable

    def cast(self, variable: Any, to: str, label: str) -> Any:
        """As MIL names types: fp32, fp16, int32, bool. The variable itself, if it is of that type."""
        return variable if type_name(variable) == to else self.op("cast", label, x=variable, dtype=to)

    def is_float(self, variable: Any) -> bool:
        return type_name(variable) in ("fp32", "fp16")

    def reshaped(self, variable: Any, label: str, sizes: Sequence[int] | Any) -> Any:
        """With other dimensions; of constants one may be -1, the rest."""
        return self.op("reshape", label, x=variable, shape=sizes)


def type_name(variable: Any) -> str:
    """The variable's element type as MIL names it."""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(variable.dtype))
