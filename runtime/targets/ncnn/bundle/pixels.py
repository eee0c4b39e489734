"""How a picture becomes an input by ncnn's functions for pixels."""

from collections.abc import Sequence

from onnx_lathe.runtime.targets.bundle import pixels
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.session import shared


def pixels_of(text: str, inputs: Sequence[Port]) -> Pixels | str:
    """What --preprocess says, or why ncnn's functions for pixels cannot do it: they make blobs of channels, rows and
    columns. Raises UsageError for a text that does not fit the network.
    """
    found = pixels.pixels_of(text, [shared(port) for port in inputs])
    if isinstance(found, Pixels) and (found.channel_axis != 1 or tuple(inputs[0].axes) != (1, 2, 3)):
        return f"input '{found.input}' is no picture with its channels first"
    return found
