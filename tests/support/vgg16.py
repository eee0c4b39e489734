"""VGG-16 at 224 x 224 (Simonyan and Zisserman, ICLR 2015, configuration D), whose weights lie in a file that is not there."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FULLY_CONNECTED = (4096, 4096, 1000)
DATA = "vgg16.data"


def without_weights(batch: int | str = 1) -> onnx.ModelProto:
    """Convolutions conv1_1 to conv5_3, pool1 to pool5, fc6 to fc8, each with a ReLU but the last."""
    nodes, weights = [], []
    tensor, channels, offset = "image", 3, 0

    def stored(name: str, *shape: int) -> str:
        nonlocal offset
        length = 4
        for size in shape:
            length *= size
        entry = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        entry.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
            entry.external_data.add(key=key, value=value)
        if length < 1024:  # as exporters do
            entry = helper.make_tensor(name, TensorProto.FLOAT, shape, bytes(length), raw=True)
        weights.append(entry)
        offset += length
        return name

    for number, block in enumerate(BLOCKS, 1):
        for place, outputs in enumerate(block, 1):
            name = f"conv{number}_{place}"
            read = [
                tensor,
                stored(f"{name}.weight", outputs, channels, 3, 3),
                stored(f"{name}.bias", outputs),
            ]
            nodes.append(helper.make_node("Conv", read, [name], name, pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
            tensor, channels = f"{name}.relu", outputs
        nodes.append(
            helper.make_node(
                "MaxPool", [tensor], [f"pool{number}"], f"pool{number}", kernel_shape=[2, 2], strides=[2, 2]
            )
        )
        tensor = f"pool{number}"
    nodes.append(helper.make_node("Flatten", [tensor], ["flat"], "flat"))
    tensor, channels = "flat", 512 * 7 * 7
    for number, outputs in enumerate(FULLY_CONNECTED, 6):
        name = f"fc{number}"
        read = [tensor, stored(f"{name}.weight", outputs, channels), stored(f"{name}.bias", outputs)]
        nodes.append(helper.make_node("Gemm", read, [name], name, transB=1))
        if number < 8:
            nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
        tensor, channels = f"{name}.relu", outputs
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 224, 224])],
        [helper.make_tensor_value_info("fc8", TensorProto.FLOAT, [batch, 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, batch: int | str = 1) -> Path:
    path = folder / "vgg16.onnx"
    path.write_bytes(without_weights(batch).SerializeToString())
    return path
