"""What must hold before and after every pass. The pipeline calls it once per step; no pass checks it itself.

Memory stays small on large models: the checker sees a skeleton, in which big initializers are inputs of the
same name and type.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import ContractError, ModelError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.graph.skeleton import signature, skeleton


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
    known = {node.name for node in import_model(before).nodes}  # which names the nameless
    for node in after.graph.node:
        if node.name not in known and metadata.PASS not in {entry.key for entry in node.metadata_props}:
            raise ContractError(f"pass '{pass_name}' made node '{node.name}' without saying so")
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


def check_outputs(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], pass_class: type[Pass]
) -> None:
    """For a lossless pass: outputs equal within its tolerance, relative to each output's largest magnitude.
    Raises ContractError.
    """
    for name, expected in before.items():
        found = after[name]
        if expected.shape != found.shape:
            raise ContractError(
                f"lossless pass '{pass_class.name}' changed the shape of output '{name}': {expected.shape} -> {found.shape}"
            )
        if not np.issubdtype(expected.dtype, np.floating):
            continue  # an index may flip between two equal values; the float outputs tell
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(found)):
            raise ContractError(f"lossless pass '{pass_class.name}' changed where output '{name}' is finite")
        if not finite.any():
            continue
        error = np.abs(expected[finite].astype(np.float64) - found[finite]).max() / max(
            np.abs(expected[finite]).max(), 1e-30
        )
        if error > pass_class.tolerance:
            raise ContractError(
                f"lossless pass '{pass_class.name}' changed output '{name}' by {error:.2g} relative, allowed is {pass_class.tolerance:.2g}"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
