"""Which convolutions of a plan are computed by tiles: those whose `lathe.conv_algorithm` says so."""

from collections.abc import Iterable, Mapping

from onnx_lathe.errors import ModelError
from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.protocols import TileTransform
from onnx_lathe.runtime.torch_bridge.operators.convolution import Convolution
from onnx_lathe.runtime.torch_bridge.plan import Step


def use_tiles(steps: Iterable[Step], transforms: Mapping[str, TileTransform]) -> None:
    """Each Conv is computed by the transform that its metadata names, or as it is if that is none of these.

    Raises ModelError naming a node whose metadata names one that it cannot be computed by.
    """
    for step in steps:
        said = next((entry.value for entry in step.node.metadata_props if entry.key == CONV_ALGORITHM), "")
        transform = transforms.get(said)
        if isinstance(step.run, Convolution):
            step.run.tiles = transform
            reason = None if transform is None else step.run.untileable()
        else:
            reason = f"the bridge does not run it as a plain convolution, but as {step.node.op_type}"
        if transform is not None and reason is not None:
            name = step.node.name or step.node.output[0]
            raise ModelError(
                f"node '{name}': {CONV_ALGORITHM} is {said}, but {reason}; remove the entry, or leave winograd= out"
            )
