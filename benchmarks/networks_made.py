"""Networks of the kinds that people train, small, with random weights, exported by both exporters of PyTorch.

Weights are as after training in one thing: statistics of batch normalization are those of the data, so that
activations stay in range.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import networks_inputs as draw
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

EXPORTERS = ("dynamo", "torchscript")
OPSETS = (13, 17, 18, 20, 21, 23)
NOT_WRITTEN = {
    **{("dynamo", opset): "the exporter writes opset 18 and above" for opset in (13, 17)},
    **{("torchscript", opset): "the exporter writes opset 20 and below" for opset in (21, 23)},
}


def block(
    read: int, written: int, size: int = 3, stride: int = 1, act: type[nn.Module] = nn.ReLU, groups: int = 1
):
    convolution = nn.Conv2d(read, written, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(written), act())


class Residual(nn.Module):
    def __init__(self, read: int, written: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(read, written, stride=stride), block(written, written, act=nn.Identity)
        )
        self.short = block(read, written, 1, stride, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


class Inverted(nn.Module):
    """Of MobileNetV3: expanded, depthwise, squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 3 * width
        self.wide = nn.Sequential(
            block(width, wide, 1, act=nn.Hardswish), block(wide, wide, 3, act=nn.Hardswish, groups=wide)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.ReLU(), nn.Conv2d(8, wide, 1), nn.Hardsigmoid()
        )
        self.narrow = block(wide, width, 1, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        return x + self.narrow(wide * self.gate(wide))


class Dense(nn.Module):
    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + i * growth),
                nn.ReLU(),
                nn.Conv2d(width + i * growth, growth, 3, padding=1),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    def __init__(self, read: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                block(read, 8, 1),
                nn.Sequential(block(read, 6, 1), block(6, 8, 3)),
                nn.Sequential(block(read, 4, 1), block(4, 8, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), block(read, 8, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class UNet(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 12), block(12, 24), block(24, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 24, 2, 2), nn.ConvTranspose2d(24, 12, 2, 2)])
        self.slim = nn.ModuleList([nn.Conv2d(32, 24, 1), nn.Conv2d(24, 12, 1)])
        self.mix = nn.ModuleList([block(48, 24), block(24, 12)])
        self.head = nn.Conv2d(12, 4, 1)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for number, down in enumerate(self.down):
            x = down(x if number == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for number, mix in enumerate(self.mix):
            if self.transposed:
                x = self.up[number](x)
            else:
                x = functional.interpolate(self.slim[number](x), scale_factor=2, mode="bilinear")
            x = mix(torch.cat([x, kept[1 - number]], 1))
        return self.head(x)


class Detector(nn.Module):
    """Two scales of boxes, in pixels, and scores beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, 3, 2, nn.SiLU), block(16, 32, 3, 2, nn.SiLU))
        self.deep = block(32, 48, 3, 2, nn.SiLU)
        self.heads = nn.ModuleList([nn.Conv2d(32, 9, 1), nn.Conv2d(48, 9, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = self.stem(x)
        deep = self.deep(near)
        found = [head(y).flatten(2) for head, y in zip(self.heads, (near, deep), strict=True)]
        joined = torch.cat(found, 2).transpose(1, 2)
        middle, size = joined[..., 0:2].sigmoid() * 32, joined[..., 2:4].exp() * 8
        boxes = torch.cat([middle - size / 2, middle + size / 2], -1)
        scores = joined[..., 4:].sigmoid()
        return torch.cat([boxes, scores], -1), scores.amax(1), deep.mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], both: bool) -> None:
        super().__init__()
        self.layers = kind(20, 24, num_layers=2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(48 if both else 24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


class Temporal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(24, 24, 3, dilation=2**i, bias=True) for i in range(3))
        self.first, self.head = nn.Conv1d(12, 24, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, layer in enumerate(self.layers):
            x = x + functional.relu(layer(functional.pad(x, (2 * 2**number, 0))))
        return self.head(x.mean(2))


class Encoder(nn.Module):
    """Of text: embedded words, attention, the mean."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.body = (
            nn.TransformerEncoder(layer, 2)
            if attention
            else nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        )
        self.head = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.words(x)).mean(1))


class Patches(nn.Module):
    """ViT or MLP-Mixer on patches of 8 x 8."""

    def __init__(self, mixer: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        self.place = nn.Parameter(torch.randn(1, 17, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.rows = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.columns = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.mixer:
            x = x + self.rows(x.transpose(1, 2)).transpose(1, 2)
            return self.head((x + self.columns(x)).mean(1))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.body(x)[:, 0])


class Next(nn.Module):
    """Of ConvNeXt: depthwise 7 x 7, normalization, a layer of four times the width, a scale per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = (
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            nn.GroupNorm(4, width),
        )
        self.wide, self.narrow = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.narrow(functional.gelu(self.wide(self.norm(self.depthwise(x)))))


class Many(nn.Module):
    """A network with features beside its answer."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features), features


def _head(width: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for read, written in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(read, written, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
    )


def _alexnet() -> nn.Module:
    first = [nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
    second = [nn.Conv2d(24, 32, 3, padding=1, groups=2), nn.ReLU(), nn.LocalResponseNorm(5)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 49, 10))


def _super_resolution() -> nn.Module:
    body = [nn.Conv2d(3, 24, 5, padding=2), nn.PReLU(24), nn.Conv2d(24, 16, 3, padding=1), nn.PReLU(16)]
    return nn.Sequential(*body, nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))


def _autoencoder() -> nn.Module:
    down = [nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 8, 4, 2, 1), nn.Tanh()]
    up = [nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid()]
    return Many(nn.Sequential(*down), nn.Sequential(*up))


def _volume() -> nn.Module:
    layers = [
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 4))


Sample = Callable[[np.random.Generator], np.ndarray]


def _picture(generator: np.random.Generator) -> np.ndarray:
    return draw.picture(generator, 32, 32) * 2 - 1


def _series(*shape: int) -> Sample:
    return lambda generator: draw.smooth(generator, shape)


def _words(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 60, 12)


MADE: dict[str, tuple[Callable[[], nn.Module], Sample]] = {
    "cnn": (lambda: nn.Sequential(block(3, 16), block(16, 32, 3, 2), *_head(32)), _picture),
    "vgg": (_vgg, _picture),
    "resnet": (lambda: nn.Sequential(block(3, 16), Residual(16, 24, 1), Residual(24, 32, 2), *_head(32)), _picture),
    "mobilenet": (lambda: nn.Sequential(block(3, 16, 3, 2, nn.Hardswish), Inverted(16), Inverted(16), *_head(16)), _picture),
    "densenet": (lambda: nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), Dense(12, 8, 3), block(36, 20, 1), *_head(20)), _picture),
    "inception": (lambda: nn.Sequential(block(3, 12, 3, 2), Inception(12), Inception(32), *_head(32)), _picture),
    "unet": (lambda: UNet(transposed=True), _picture),
    "segmentation": (lambda: UNet(transposed=False), _picture),
    "super-resolution": (_super_resolution, _picture),
    "detector": (Detector, _picture),
    "autoencoder": (_autoencoder, _picture),
    "lstm": (lambda: Recurrent(nn.LSTM, False), _series(10, 20)),
    "gru": (lambda: Recurrent(nn.GRU, True), _series(10, 20)),
    "tcn": (Temporal, _series(12, 40)),
    "transformer": (lambda: Encoder(True), _words),
    "vit": (lambda: Patches(False), _picture),
    "mixer": (lambda: Patches(True), _picture),
    "conv3d": (_volume, _series(1, 8, 12, 12)),
    "alexnet": (_alexnet, _picture),
    "text": (lambda: Encoder(False), _words),
    "convnext": (lambda: nn.Sequential(nn.Conv2d(3, 16, 4, 4), Next(16), Next(16), *_head(16)), _picture),
}  # fmt: skip


def samples(name: str, count: int, seed: int) -> np.ndarray:
    """[count, ...] of what the network takes."""
    generator = np.random.default_rng(seed)
    return np.stack([MADE[name][1](generator) for _ in range(count)])


@dataclass(frozen=True)
class Form:
    """How a network is exported."""

    network: str
    exporter: str
    dynamic: bool
    opset: int

    def __str__(self) -> str:
        return f"{self.network}-{self.exporter}-{'dynamic' if self.dynamic else 'fixed'}-{self.opset}"


def forms() -> Sequence[Form]:
    return [
        Form(name, exporter, dynamic, opset)
        for name in MADE for exporter in EXPORTERS for dynamic in (False, True) for opset in OPSETS
        if (exporter, opset) not in NOT_WRITTEN
    ]  # fmt: skip


@contextmanager
def _silence() -> Iterator[None]:
    """Standard output by its descriptor: an exporter that fails prints its whole graph there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def export(form: Form, path: Path) -> None:
    """Raises what the exporter raises, also where it says another opset than was asked for."""
    torch.manual_seed(0)
    network = MADE[form.network][0]()
    example = torch.from_numpy(samples(form.network, 8, seed=5))
    with torch.no_grad():
        network.train()
        for _ in range(3):
            network(example)
    arguments = {"opset_version": form.opset, "input_names": ["x"], "dynamo": form.exporter == "dynamo"}
    if form.dynamic and form.exporter == "dynamo":
        arguments["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif form.dynamic:
        arguments["dynamic_axes"] = {"x": {0: "batch"}}
    with warnings.catch_warnings(), _silence():
        warnings.simplefilter("ignore")
        if form.exporter == "dynamo":
            arguments |= {"verbose": False, "external_data": False}
        torch.onnx.export(network.eval(), (example[: 2 if form.dynamic else 1],), str(path), **arguments)
    written = next(one.version for one in onnx.load(path).opset_import if not one.domain)
    if written != form.opset:
        raise ValueError(f"the exporter wrote opset {written}")
