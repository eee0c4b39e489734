"""A VGG-style network for the benchmarks (Simonyan and Zisserman, ICLR 2015): 3x3 convolutions only,
CIFAR-10, 57.6 million MACs.

Trained on 45,000 training images; the other 5,000 (`held out`) choose settings, and the 10,000 test images
only give figures.
"""

from pathlib import Path

import numpy as np
import torch
from sets import ROOT, data_file, scaled
from torch import nn

import trainer  # isort: skip  sets puts models/ on the path

WIDTHS = (32, 32, 0, 64, 64, 64, 0, 128, 128, 128)
HELD_OUT = 5000


def vgg() -> nn.Module:
    """float32 [N, 3, 32, 32] to [N, 10]; 0 in WIDTHS is a max pooling of 2 x 2."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def trained(out: Path, data_dir: str | None, epochs: int = 24) -> Path:
    """vgg.onnx in `out`, trained when it is not there."""
    path = out / "vgg.onnx"
    if path.exists():
        return path
    with np.load(data_file("cifar10", out, data_dir, HELD_OUT)) as arrays:
        images, labels = arrays["train/image"], torch.from_numpy(arrays["train/labels"])
    inputs = torch.from_numpy(scaled(images, "cifar10"))
    torch.manual_seed(0)
    network = vgg().to(memory_format=torch.channels_last)
    augment = trainer.shift(4, flip=True)
    trainer.fit(
        network,
        inputs,
        labels,
        epochs=epochs,
        batch=128,
        rate=0.2,
        weight_decay=5e-4,
        augment=augment,
        seed=0,
        half=True,
    )
    network.to(memory_format=torch.contiguous_format)
    return trainer.export(network, (3, 32, 32), str(ROOT), str(path))
