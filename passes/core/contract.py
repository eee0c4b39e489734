"""What must hold before and after every pass. The pipeline calls it once per step; no pass checks it itself.

Memory stays small on large models: the checker sees a skeleton, in which big initializers are inputs of the
same name and type.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnx_lathe import held, metadata
from onnx_lathe.errors import ContractError, ModelError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.graph.skeleton import optional_inputs, signature, skeleton

FLIPPED = 0.01
"""Share of an output's integers or texts that may be others where a model is to compute what it did: an index
flips between two values that are nearly equal. More may be only where rounding alone does it.
"""
ROUNDING_MARGIN = 4.0
"""How many times as far as it was seen to do rounding may move an output: it is measured a few times only."""


def check_model(model: onnx.ModelProto, strict: bool = True) -> None:
    """Raises ModelError if the checker refuses the model; `strict` also asks for consistent shapes."""
    try:
        onnx.checker.check_model(skeleton(model), full_check=strict)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the ONNX checker refuses the model: {_one_line(error)}") from error


def check_structure(before: onnx.ModelProto, after: onnx.ModelProto, pass_name: str) -> None:
    """Raises ContractError if `pass_name` changed what a caller sees, broke the model, or left metadata
    that names nothing.
    """
    old, new = signature(before), signature(after)
    for key in [*old, *(new.keys() - old.keys())]:
        if old.get(key) != new.get(key):
            raise ContractError(f"pass '{pass_name}' changed {key}: {old.get(key)} became {new.get(key)}")
    _check_defaults(before, after, pass_name)
    try:
        check_model(before)
        strict = True
    except ModelError:
        strict = False  # shapes were inconsistent already, or an operator has no shape inference
    try:
        check_model(after, strict)
    except ModelError as error:
        raise ContractError(f"pass '{pass_name}' wrote an invalid model: {error}") from error
    names = [node.name for node in after.graph.node]
    if len(set(names)) != len(names):
        raise ContractError(f"pass '{pass_name}' left two nodes of one name")
    unsaid = [
        node.name
        for node in after.graph.node
        if metadata.PASS not in {entry.key for entry in node.metadata_props}
    ]
    if made := set(unsaid) - ({node.name for node in before.graph.node} - {""}):
        made -= {node.name for node in import_model(before).nodes}  # which names the nameless
        for name in unsaid:
            if name in made:
                raise ContractError(f"pass '{pass_name}' made node '{name}' without saying so")
    tensors = {
        name
        for part in graph_protos(after.graph)
        for name in [tensor.name for tensor in part.initializer]
        + [name for node in part.node for name in node.output]
    }
    missing = metadata.read_sparse(after.metadata_props).keys() - tensors
    if missing:
        raise ContractError(
            f"pass '{pass_name}' left {metadata.SPARSE} naming '{min(missing)}', which is not in the graph"
        )
    _check_ranges(after, pass_name)


def _check_ranges(model: onnx.ModelProto, pass_name: str) -> None:
    """Raises ContractError if a `lathe.range` names a tensor that the node does not compute, or no input of the
    model.
    """
    holders = [("the model", model.metadata_props, {value.name for value in model.graph.input})]
    holders += [
        (f"node '{node.name}'", node.metadata_props, set(node.output))
        for node in model.graph.node
        if node.op_type != "QuantizeLinear"
    ]
    for owner, entries, names in holders:
        text = next((entry.value for entry in entries if entry.key == metadata.RANGE), None)
        if missing := metadata.parse_ranges(text).keys() - names:
            raise ContractError(
                f"pass '{pass_name}' left {metadata.RANGE} of {owner} naming '{min(missing)}', which it does not have"
            )


def _check_defaults(before: onnx.ModelProto, after: onnx.ModelProto, pass_name: str) -> None:
    """Raises ContractError if an optional input has another default: the signature has its type and shape."""
    defaults = [{tensor.name: tensor for tensor in model.graph.initializer} for model in (before, after)]
    for value in optional_inputs(before):
        old, new = (found.get(value.name) for found in defaults)
        if old is not new and (old is None or new is None or _data(old) != _data(new)):
            raise ContractError(f"pass '{pass_name}' changed the default of input '{value.name}'")


def _data(tensor: onnx.TensorProto) -> bytes:
    return tensor.raw_data or held.to_array(tensor).tobytes()


class OutputMovedError(ContractError):
    """A lossless pass after which an output has other values."""


def check_outputs(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    pass_class: type[Pass],
    rounding: Callable[[], Mapping[str, float]] = dict,
) -> None:
    """For a lossless pass: outputs equal within its tolerance, relative to each output's largest magnitude.

    Of integers and texts, the share that is other counts, and FLIPPED is the tolerance.

    rounding: per output, by how much rounding alone moves it; asked only if an output is beyond the
    tolerance, and then ROUNDING_MARGIN times as much is allowed. Raises ContractError for another shape,
    and OutputMovedError for other values.
    """
    known: Mapping[str, float] | None = None
    if lost := sorted(before.keys() ^ after.keys()):  # parts of a sequence
        raise OutputMovedError(
            f"lossless pass '{pass_class.name}' changed whether there is an output '{lost[0]}'"
        )
    for name, expected in before.items():
        found = after[name]
        if expected.shape != found.shape:
            raise ContractError(
                f"lossless pass '{pass_class.name}' changed the shape of output '{name}': {expected.shape} -> {found.shape}"
            )
        if not np.issubdtype(expected.dtype, np.floating):
            share = flipped(expected, found)
            if share <= FLIPPED:
                continue
            known = rounding() if known is None else known
            allowed = max(FLIPPED, ROUNDING_MARGIN * known.get(name, 0.0))
            if share > allowed:
                raise OutputMovedError(
                    f"lossless pass '{pass_class.name}' changed {share:.2%} of the values of output '{name}', allowed is {allowed:.2%}"
                )
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(found)):
            raise OutputMovedError(
                f"lossless pass '{pass_class.name}' changed where output '{name}' is finite"
            )
        if not finite.any():
            continue
        largest = max(float(np.abs(expected[finite]).max()), 1e-30)
        error = float(np.abs(expected[finite].astype(np.float64) - found[finite]).max()) / largest
        if error <= pass_class.tolerance:
            continue
        known = rounding() if known is None else known
        allowed = max(pass_class.tolerance, ROUNDING_MARGIN * known.get(name, 0.0) / largest)
        if error > allowed:
            raise OutputMovedError(
                f"lossless pass '{pass_class.name}' changed output '{name}' by {error:.2g} relative, allowed is {allowed:.2g}"
            )


def flipped(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of values, of arrays of one shape, that are others; numbers of 8 bits may differ by one, which rounding does."""
    if expected.size == 0:
        return 0.0
    if expected.dtype in (np.uint8, np.int8) and found.dtype == expected.dtype:
        return float(np.mean(np.abs(expected.astype(np.int16) - found) > 1))
    return float(np.mean(expected != found))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
