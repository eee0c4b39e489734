"""Which convolutions of a plan are computed by tiles in float16: those whose `lathe.conv_algorithm` says so, and no
`lathe.conv_precision` otherwise.
"""

from collections.abc import Iterable, Mapping

from onnx_lathe.errors import ModelError
from onnx_lathe.metadata import CONV_ALGORITHM, CONV_PRECISION
from onnx_lathe.runtime.torch_bridge.operators.convolution import Convolution
from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.tiles import Tiles


def use_tiles(steps: Iterable[Step], transforms: Mapping[str, Tiles]) -> None:
    """Each Conv is computed by the transform that its metadata names, or as it is if that is none of these.

    Raises ModelError naming a node whose metadata names one that it cannot be computed by.
    """
    for step in steps:
        entries = {entry.key: entry.value for entry in step.node.metadata_props}
        said = entries.get(CONV_ALGORITHM, "")
        transform = None if CONV_PRECISION in entries else transforms.get(said)
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
