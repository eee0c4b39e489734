"""Makes constants of inputs whose values a user names: a branch that they choose is folded then.

input sr, int64 []    becomes    initializer sr = 16000
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, nearest
from onnx_lathe.passes.graph.skeleton import runtime_inputs


def fix_inputs(model: onnx.ModelProto, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Takes these inputs off the model, in place, and stores their values as initializers. Returns the values.

    wanted: numbers, booleans or lists of them, by name. Raises ModelError naming the input whose value does not fit
    what the model declares, or that is none to feed; the model is unchanged then.
    """
    values = {name: _value(model, name, value) for name, value in wanted.items()}
    if wanted and len(values) == len(runtime_inputs(model)):
        raise ModelError(
            "all its inputs would be constants, and its outputs too; leave one input that is fed"
        )
    for place in reversed(range(len(model.graph.input))):
        if model.graph.input[place].name in values:
            del model.graph.input[place]
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return values


def described(values: Mapping[str, np.ndarray]) -> list[str]:
    """Sentences for the report."""
    return [f"input '{name}' is the constant {_short(value)}" for name, value in values.items()]


MOST_SHOWN = 8
"""Values of a list that a sentence shows."""


def _short(value: np.ndarray) -> str:
    if value.size <= MOST_SHOWN:
        return str(value.tolist()).replace("True", "true").replace("False", "false")
    return f"of shape {list(value.shape)} that begins {value.reshape(-1)[:MOST_SHOWN].tolist()}"


def _value(model: onnx.ModelProto, name: str, value: Any) -> np.ndarray:
    declared = _declared(model, name)
    kind = onnx.helper.tensor_dtype_to_string(declared.elem_type).removeprefix("TensorProto.").lower()
    what = f"input '{name}' is {kind}{_axes(declared)}"
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type))
    except KeyError:
        dtype = np.dtype(object)
    if dtype.kind not in "biuf" and kind != "bfloat16":
        raise ModelError(f"{what}, which cannot be a constant here: only numbers and booleans can")
    return _shaped(_numbers(value, dtype, what), declared, what)


def _declared(model: onnx.ModelProto, name: str) -> onnx.TypeProto.Tensor:
    fed = {value.name: value for value in runtime_inputs(model)}
    if name in fed:
        if not fed[name].type.HasField("tensor_type"):
            raise ModelError(f"input '{name}' is no plain tensor, and cannot be a constant")
        return fed[name].type.tensor_type
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    if name in stored:
        optional = any(value.name == name for value in model.graph.input) and model.ir_version >= 4
        advice = "give --drop-optional-inputs to make its default a constant" if optional else "leave it out"
        kind = "an optional input, whose default is an initializer" if optional else "an initializer already"
        raise ModelError(f"'{name}' is {kind}; {advice}")
    there = ", ".join(f"'{one}'" for one in fed) or "none"
    raise ModelError(
        f"has no input '{name}' to make a constant of{nearest(name, fed)}; its inputs are {there}"
    )


def _numbers(value: Any, dtype: np.dtype, what: str) -> np.ndarray:
    """An array of the type: of integers no other numbers, of booleans no numbers."""
    flat = list(_flat(value))
    wanted, right = {
        "b": ("true or false", (bool, np.bool_)),
        "f": ("numbers", (int, float, np.integer, np.floating)),
    }.get(dtype.kind, ("whole numbers", (int, np.integer)))
    if dtype.kind not in "biuf":  # bfloat16
        wanted, right = "numbers", (int, float, np.integer, np.floating)
    for one in flat:
        if not isinstance(one, right) or (isinstance(one, bool | np.bool_) and dtype.kind != "b"):
            raise ModelError(f"{what}: its value takes {wanted}, not {one!r}")
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        for one in flat:
            if not ends.min <= one <= ends.max:
                raise ModelError(f"{what}: its value takes {ends.min} to {ends.max}, not {one}")
    try:
        with np.errstate(over="ignore"):
            found = np.array(value, dtype)
    except ValueError:
        raise ModelError(f"{what}: the rows of its value differ in length") from None
    if dtype.kind not in "biu":
        for one, stored in zip(flat, found.reshape(-1), strict=True):
            if np.isfinite(float(one)) and not np.isfinite(np.float64(stored)):
                raise ModelError(f"{what}: its value is beyond what that type holds: {one}")
    return found


def _flat(value: Any) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        return list(value.reshape(-1))
    if isinstance(value, list | tuple):
        return [one for part in value for one in _flat(part)]
    return [value]


def _shaped(value: np.ndarray, declared: onnx.TypeProto.Tensor, what: str) -> np.ndarray:
    """The value in the declared shape, which a single number need not be written in if it holds one."""
    if not declared.HasField("shape"):
        return value
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in declared.shape.dim]
    if value.ndim == 0 and all(size in (None, 1) for size in sizes):
        return value.reshape([1] * len(sizes))
    fits = value.ndim == len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, value.shape, strict=True)
    )
    if not fits:
        given = f"a list of shape {list(value.shape)}" if value.ndim else "one number"
        raise ModelError(f"{what}: {given} does not fit; give {_example(sizes)}")
    return value


def _example(sizes: Sequence[int | None]) -> str:
    if not sizes:
        return "one number, without brackets"
    shown = ", ".join("?" if size is None else str(size) for size in sizes)
    return f"a list of shape [{shown}]" + (", such as [[1, 2], [3, 4]] for [2, 2]" if len(sizes) > 1 else "")


def _axes(declared: onnx.TypeProto.Tensor) -> str:
    if not declared.HasField("shape"):
        return ""
    dims = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in declared.shape.dim
    ]
    return f" [{', '.join(dims)}]" if dims else ", one number"
