"""Train Caffe's LeNet-5 (431,080 parameters) on MNIST and write model.onnx.

Conv 20@5x5, max pool, conv 50@5x5, max pool, fully connected 500, ReLU, fully connected 10: LeCun et al.
1998 as in Caffe's examples/mnist, the network that Han et al. (ICLR 2016) compress.
"""

import sys
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import trainer
from torch import nn


def lenet5() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def main() -> None:
    options = trainer.arguments(__doc__ or "", epochs=20)
    torch.manual_seed(options.seed)
    network = lenet5()
    train, test = trainer.parts(trainer.mnist, options)
    trainer.fit(
        network, *train, epochs=options.epochs, batch=128, rate=0.05, weight_decay=5e-4,
        augment=trainer.shift(1), seed=options.seed,
    )  # fmt: skip
    error = trainer.error_percent(network, *test)
    path = trainer.export(network, (1, 28, 28), __file__, options.out)
    print(f"{path}: error {error:.2f} % on {len(test[0]):,} images")


if __name__ == "__main__":
    main()
