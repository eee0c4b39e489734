"""Train LeNet-300-100 (784-300-100-10 with ReLU, 266,610 parameters; LeCun et al. 1998) on MNIST and write
model.onnx.
"""

import sys
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import trainer
from torch import nn


def lenet300() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def main() -> None:
    options = trainer.arguments(__doc__ or "", epochs=30)
    torch.manual_seed(options.seed)
    network = lenet300()
    train, test = trainer.parts(trainer.mnist, options)
    trainer.fit(
        network, *train, epochs=options.epochs, batch=128, rate=0.1, weight_decay=1e-4,
        augment=trainer.shift(1), seed=options.seed,
    )  # fmt: skip
    error = trainer.error_percent(network, *test)
    path = trainer.export(network, (1, 28, 28), __file__, options.out)
    print(f"{path}: error {error:.2f} % on {len(test[0]):,} images")


if __name__ == "__main__":
    main()
