"""What the three `train.py` scripts share: a seeded training loop, the test-set error, and the export to
ONNX.

Settings are fixed in each script beforehand; the last epoch's weights are kept. The test set is read once,
at the end.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import onnx
import torch
from torch import nn

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def arguments(description: str, epochs: int, start: bool = False) -> argparse.Namespace:
    """Parsed options; with `start`, also a model file to go on training from."""
    parser = argparse.ArgumentParser(description=description)
    if start:
        parser.add_argument("--start", help="model.onnx of an earlier run, to go on from")
    parser.add_argument(
        "--data-dir", help="directory with the data set's files (default: download the public originals)"
    )
    parser.add_argument(
        "--holdout",
        type=int,
        default=0,
        help="judge on the last N training images, not trained on, in place of the test set",
    )
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file to write (default: model.onnx beside the script)")
    return parser.parse_args()


def fit(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    weight_decay: float,
    augment: Augment,
    seed: int,
    half: bool = False,
    warmup: float = 0.2,
) -> None:
    """Train in place by SGD with Nesterov momentum 0.9 under a one-cycle schedule.

    images: float32 [N, C, H, W]; labels: int64 [N]. `half` runs forward and backward in bfloat16 over
    float32 weights; `warmup` is the share of the steps during which the learning rate rises to `rate`.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=warmup
    )
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        network.train()
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            inputs = augment(images[chosen], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = loss_of(network(inputs), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * batch
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def shift(pixels: int, flip: bool = False) -> Augment:
    """Random translation by up to `pixels` in both directions, zeros outside; with `flip`, also a mirror
    image half of the time.
    """

    def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, channels, height, width = images.shape
        padded = nn.functional.pad(images, (pixels,) * 4)
        corner = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)
        rows = corner[0][:, None, None, None] + torch.arange(height)[None, None, :, None]
        columns = corner[1][:, None] + torch.arange(width)[None, :]
        if flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        each = torch.arange(count)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return padded[each, channel, rows, columns[:, None, None, :]]

    return augment


def error_percent(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    network.eval()
    with torch.no_grad():
        wrong = sum(
            int((network(x).argmax(1) != y).sum())
            for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        )
    return 100.0 * wrong / len(labels)


def parts(
    load: Callable[[str, str | None], tuple[torch.Tensor, torch.Tensor]], options: argparse.Namespace
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(images, labels) to train on, and to judge by."""
    if not options.holdout:
        return [load(split, options.data_dir) for split in ("train", "test")]
    images, labels = load("train", options.data_dir)
    return [
        (images[rows], labels[rows])
        for rows in (slice(None, -options.holdout), slice(-options.holdout, None))
    ]


def mnist(split: str, directory: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 1, 28, 28] in 0..1, labels int64 [N]."""
    images, labels = datasets.load("mnist", split, directory)
    return torch.from_numpy(images.astype(np.float32)[:, None] / 255), torch.from_numpy(labels)


def export(network: nn.Module, shape: tuple[int, ...], script: str, out: str | None) -> Path:
    """Write `model.onnx` beside `script` (or to `out`): one input `image` [N, *shape], one output `logits`,
    dynamic batch.
    """
    path = Path(out) if out else Path(script).resolve().parent / "model.onnx"
    network.eval()
    torch.onnx.export(
        network.float(),
        (torch.zeros(2, *shape),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        opset_version=21,  # the first opset with UINT4, which 4-bit codebook indices are stored as
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    del model.metadata_props[:], model.graph.metadata_props[:]
    for item in [
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ]:
        del item.metadata_props[:]  # the exporter's stack traces: paths of the machine that trained
        item.doc_string = ""
    onnx.save(model, path)
    return path
