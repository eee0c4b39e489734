"""The documents as a reader would use them: commands and blocks of Python in pages, and a folder to run them in."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from tests.support.builders import build, random
from tests.support.builders import run as outputs_of
from tests.support.house import ROOT

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
CLASSES, SIDE, SAMPLES = 4, 12, 240
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "bash", "console", "sh", "shell")
RIDGE = 0.01
"""Of the mean variance of the last layer's inputs."""
NEED_NO_FILE = ("passes", "recipes", "completion")
NETWORK = """(float[N,3,12,12] image) => (float[N,4] logits) {
    conv1_out = Conv<pads=[1,1,1,1], strides=[2,2]>(image, conv1_weight, conv1_bias) relu1 = Relu(conv1_out)
    conv2_out = Conv<pads=[1,1,1,1], strides=[2,2]>(relu1, conv2_weight) relu2 = Relu(conv2_out)
    features = Flatten(relu2) logits = Gemm(features, fc_weight, fc_bias)
}"""


@dataclass(frozen=True)
class Command:
    """A command of a page: `text` is what stands behind "optimize"."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, without a comment behind them or where the output goes."""
        words = shlex.split(self.text, comments=True)
        return words[: words.index(">")] if ">" in words else words

    @property
    def output(self) -> str | None:
        """The file that the output goes to."""
        words = shlex.split(self.text, comments=True)
        return words[words.index(">") + 1] if ">" in words else None

    def __str__(self) -> str:
        return f"{self.page}: optimize {self.text}"


def commands(page: str) -> Iterator[Command]:
    """Commands that stand on lines of their own, in fences and indented, continued lines joined."""
    text = re.sub(r" *\\\n *", " ", _read(page))
    for fence in FENCE.finditer(text):
        if fence[2] not in SHELLS:
            text = text.replace(fence[0], "")
    for line in text.splitlines():
        found = re.match(r"(?: {4,}|\$ |)(?:\$ )?optimize (\S.*)$", line)
        in_fence = any(line in fence[3] for fence in FENCE.finditer(text))
        if found is not None and (in_fence or not line.startswith("optimize")):
            yield Command(page, found[1])


def inline_commands(page: str) -> Iterator[Command]:
    """Commands inside a sentence that are complete: they name a file, or need none, and no word in capitals is to be
    replaced.
    """
    for found in re.findall(r"`optimize ([^`\n]+)`", FENCE.sub("", _read(page))):
        words = re.sub(r'"[^"]*"', "", found).split()
        complete = words[0] in NEED_NO_FILE or any(re.search(r"\w\.\w", word) for word in words)
        if (
            len(words) > 1
            and complete
            and not any(word.strip("[]").isupper() or "..." in word for word in words)
        ):
            yield Command(page, found)


def scripts(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return [fence[3] for fence in FENCE.finditer(_read(page)) if fence[2] == "python"]


def recipes_in(page: str) -> list[str]:
    """The blocks of TOML of a page that are recipes."""
    return [
        fence[3]
        for fence in FENCE.finditer(_read(page))
        if fence[2] == "toml" and re.search(r"^(\[\[pass\]\]|passes =)", fence[3], re.MULTILINE)
    ]


def _read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def stand_ins(folder: Path) -> None:
    """What the pages take for granted: a small network that tells four patterns apart, and data of them in every form
    that a page names.
    """
    patterns = np.random.default_rng(0).random((CLASSES, 3, SIDE, SIDE)).round()
    labels = np.arange(SAMPLES) % CLASSES
    noise = np.random.default_rng(1).random((SAMPLES, 3, SIDE, SIDE))
    pixels = (255 * (0.8 * patterns[labels] + 0.2 * noise)).astype(np.uint8)
    model = _fitted(pixels.astype(np.float32) / 255, labels)
    onnx.save(model, folder / "model.onnx")
    (folder / "elsewhere").mkdir()
    onnx.save(model, folder / "elsewhere" / "model.onnx")
    for name in ("data", "digits", "images", "train", "test"):
        at = (
            slice(0, SAMPLES // 2)
            if name == "train"
            else slice(SAMPLES // 2 if name == "test" else 0, SAMPLES)
        )
        np.savez(folder / f"{name}.npz", image=pixels[at].astype(np.float32) / 255, labels=labels[at])
    for name in ("pictures", "images"):
        for index in range(80):
            path = folder / name / "abcd"[labels[index]] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index].transpose(1, 2, 0)).save(path)
    voice = "(float[N, 8] x, int64 sr) => (float[N, 2] y) { fast = Greater (sr, limit)  y = If (fast) <then_branch = one () => (float[N, 2] a) { a = Gemm (x, w) }, else_branch = other () => (float[N, 2] b) { b = Gemm (x, v) }> }"
    branches = {"limit": np.array(8000), "w": random(8, 2), "v": random(8, 2)}
    onnx.save(build(voice, **branches), folder / "vad.onnx")
    np.savez(folder / "windows.npz", x=random(40, 8), sr=np.array(16000))
    cache = [f"{name}: 3caa5293" for name in ("image", "relu1", "features")]
    (folder / "calib.cache").write_text("\n".join(["TRT-8601-EntropyCalibration2", *cache]), encoding="utf-8")
    hook = "def retrain(module, job):\n    for batch in job.data.batches(32):\n        module(**batch.inputs)\n        break\n"
    (folder / "train.py").write_text(hook, encoding="utf-8")


def _fitted(images: np.ndarray, labels: np.ndarray) -> onnx.ModelProto:
    """Random convolutions, and a last layer by least squares on what they give, with small weights (ridge)."""
    model = build(
        NETWORK,
        conv1_weight=random(24, 3, 3, 3) / 4,
        conv1_bias=random(24) / 8,
        conv2_weight=random(32, 24, 3, 3) / 8,
        fc_weight=np.zeros((288, CLASSES), np.float32),
        fc_bias=np.zeros(CLASSES, np.float32),
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", 1, None))
    features = outputs_of(model, {"image": images})["features"]
    del model.graph.output[1:]
    means, wanted = features.mean(axis=0), np.eye(CLASSES)[labels] - 1 / CLASSES
    centred = (features - means).astype(np.float64)
    square = centred.T @ centred
    ridge = RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    weight = np.linalg.solve(square + ridge, centred.T @ wanted)
    for name, value in (("fc_weight", weight), ("fc_bias", -means @ weight)):
        (tensor,) = [one for one in model.graph.initializer if one.name == name]
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return model
