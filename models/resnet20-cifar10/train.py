"""Train ResNet-20 (He et al., CVPR 2016, section 4.2; projection shortcuts; 272,474 parameters) on CIFAR-10
and write model.onnx.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import datasets
import numpy as np
import onnx
import torch
import trainer
from torch import nn

# Channel means and standard deviations of the training images, in grey levels; data.py repeats them.
MEAN = (125.3, 123.0, 113.9)
STD = (63.0, 62.1, 66.7)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs, stride in [(16, 1)] * 3 + [(32, 2), (32, 1), (32, 1)] + [(64, 2), (64, 1), (64, 1)]:
        layers.append(Block(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def cifar10(split: str, directory: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized images float32 [N, 3, 32, 32], labels int64 [N]."""
    images, labels = datasets.load("cifar10", split, directory)
    scaled = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def load_folded(network: nn.Module, path: str, images: torch.Tensor) -> None:
    """Loads an exported model, whose batch normalization is part of the convolutions, back into the network
    that has it.

    Weights are scaled to the size that they have at initialization; then one forward pass over `images`
    gives every normalization the statistics of its input, and the scale and shift that make its output the
    exported convolution's.
    """
    graph = onnx.load(path).graph
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    inputs = {node.input[1]: node.input[2] for node in graph.node if node.op_type == "Conv"}
    modules = dict(network.named_modules())
    convolutions = [(name, module) for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules.values() if isinstance(module, nn.BatchNorm2d)]
    by_convolution = {}
    for (name, convolution), norm in zip(convolutions, norms, strict=True):
        weight = stored[f"{name}.weight"]
        scale = convolution.weight.detach().norm() / weight.norm()
        convolution.weight.data.copy_(weight * scale)
        by_convolution[norm] = (scale, stored[inputs[f"{name}.weight"]])
    final = network[-1]
    final.weight.data.copy_(stored[f"{len(network) - 1}.weight"])
    final.bias.data.copy_(stored[f"{len(network) - 1}.bias"])

    def settle(norm: nn.BatchNorm2d, received: tuple[torch.Tensor]) -> None:
        scale, bias = by_convolution[norm]
        variance, mean = torch.var_mean(received[0], (0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.data.copy_((variance + norm.eps).sqrt() / scale)
        norm.bias.data.copy_(bias + mean / scale)

    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    network.eval()
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()


def main() -> None:
    options = trainer.arguments(__doc__ or "", epochs=40, start=True)
    torch.manual_seed(options.seed)
    network = resnet20().to(memory_format=torch.channels_last)
    (images, labels), test = trainer.parts(cifar10, options)
    if options.start:
        load_folded(network, options.start, images[:2000])
    trainer.fit(
        network, images, labels, epochs=options.epochs, batch=128, rate=0.1 if options.start else 0.2, weight_decay=5e-4,
        augment=trainer.shift(4, flip=True), seed=options.seed, half=True, warmup=0.05 if options.start else 0.2,
    )  # fmt: skip
    network.to(memory_format=torch.contiguous_format)
    error = trainer.error_percent(network, *test)
    path = trainer.export(network, (3, 32, 32), __file__, options.out)
    print(f"{path}: top-1 {100 - error:.2f} % on {len(test[0]):,} images")


if __name__ == "__main__":
    main()
