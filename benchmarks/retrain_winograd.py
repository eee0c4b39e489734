"""ResNet-20 as a phone runs it: 3 x 3 convolutions of stride 1 by F(6 x 6) in float16, simulated, and what training with
that simulation brings back.

    python benchmarks/retrain_winograd.py [--rates 1e-5 1e-4] [--epochs 2]

Of the 2,000 shipped training images 1,500 are trained on; 500 choose. The 2,000 shipped test images chose nothing.
One thread.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from sets import ROOT

from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.tiles import F63, Tiles

RESNET = ROOT / "models" / "resnet20-cifar10"
CHOSEN = "winograd63"
TILES = {CHOSEN: F63}
FIT, BATCH = 1500, 250


class Images(DataSource):
    labelled, fingerprint, description = True, "images", "images"

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels, self.count = images, labels, len(images)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self.images))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield Batch({"image": self.images[rows]}, self.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 1e-4])
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = _images()
    order = np.random.default_rng(0).permutation(train.count)
    fit, held = (Images(train.images[rows], train.labels[rows]) for rows in (order[:FIT], order[FIT:]))
    model = _chosen(onnx.load(RESNET / "model.onnx"))
    print("| by F(6 x 6) in float16 | s | 500 held out: top-1, agreement, SQNR | 2,000 of test: the same |")
    print("|---|---|---|---|")
    _row("before", 0.0, model, model, held, test)
    for rate in options.rates:
        for winograd in ("float16", None):
            settings = {"epochs": options.epochs, "rate": rate, "distill": 1.0, "winograd": winograd}
            trainer, started = TorchTrainer(TrainingSetup(fit, model)), time.perf_counter()
            after, _ = apply_pass(configure(Retrain, settings), model, Context(trainer=trainer))
            seconds = time.perf_counter() - started
            _row(f"rate {rate:g}, winograd={winograd}".lower(), seconds, after, model, held, test)


def _images() -> list[Images]:
    sys.path.insert(0, str(RESNET))
    import data

    found = []
    for split in (data.train, data.test):
        images, labels = zip(*split(), strict=True)
        found.append(Images(np.concatenate(images), np.concatenate(labels)))
    return found


def _chosen(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if (attributes.get("kernel_shape"), attributes.get("strides")) == ([3, 3], [1, 1]):
            node.metadata_props.add(key=CONV_ALGORITHM, value=CHOSEN)
    return model


def _row(name: str, seconds: float, model: onnx.ModelProto, original: onnx.ModelProto, *sets: Images) -> None:
    """Agreement and SQNR are with the original in float32."""
    cells = []
    for images in sets:
        wanted, found = _outputs(original, images, {}), _outputs(model, images, TILES)
        top1 = np.mean(found.argmax(1) == images.labels)
        agreement = np.mean(found.argmax(1) == wanted.argmax(1))
        sqnr = 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum())
        cells.append(f"{top1:.2%}, {agreement:.2%}, {sqnr:.1f} dB")
    print(f"| {name} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)


def _outputs(model: onnx.ModelProto, images: Images, tiles: dict[str, Tiles]) -> np.ndarray:
    module = GraphModule(model).eval()
    module.tile(tiles)
    with torch.no_grad():
        parts = [module(torch.from_numpy(batch.inputs["image"])) for batch in images.batches(BATCH)]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main()
