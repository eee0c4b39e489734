"""How runtime/pack/dictionary-1.bin was made: skeletons of small networks, exported by PyTorch and compiled
by Lathe, without repetitions.

    python benchmarks/pack_dictionary.py OUT

The file is part of the packed format and never changes; a better one needs a new name and a new version of
the format. None of the networks is one that the benchmarks measure. Folders in the exporter's stack traces
were then renamed, byte for byte as long.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import zstandard
from torch import nn

from onnx_lathe.optimizer.cli import main as optimize
from onnx_lathe.runtime.pack import wire

LIMIT_BYTES = 1 << 14
NOVEL = 0.30
"""A message is kept if it compresses to no less than this share of itself, given those kept before it."""
PASSES = ("fold", "fold,prune(sparsity=0.5,min_size=1),codebook(bits=2,min_size=1)", "fold,int8")


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, stride=2), nn.BatchNorm2d(2 * channels)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(image)))
        return torch.relu(self.bn2(self.conv2(out)) + self.downsample(image))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Residual(8), Residual(16))
        self.layer2 = nn.Sequential(Residual(32))
        self.fc = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(
            torch.flatten(nn.functional.adaptive_avg_pool2d(self.layer2(self.layer1(image)), 1), 1)
        )


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(8, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Hardswish()),
            *(nn.Conv2d(32, 16, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16, 24), nn.LeakyReLU(), nn.Dropout(), nn.Linear(24, 5), nn.Softmax(1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.norm1(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.norm2(tokens + self.mlp(tokens))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = (
            nn.Conv2d(8, 6, 3),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1),
        )
        self.fc1, self.fc2, self.fc3 = nn.Linear(12 * 25, 40), nn.Linear(40, 30), nn.Linear(30, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.pool(torch.relu(self.conv1(image)))
        image = torch.max_pool2d(torch.relu(self.conv2(image)), 3, padding=1)
        image = torch.relu(self.fc1(nn.functional.interpolate(image, (5, 5)).flatten(1)))
        return self.fc3(torch.relu(self.fc2(image)))


NETWORKS = ((Block, (2, 6, 32)), (Mobile, (2, 8, 12, 12)), (ResNet, (2, 8, 16, 16)), (Small, (2, 8, 30, 30)))


def skeletons(folder: Path) -> list[bytes]:
    found = []
    for network, shape in NETWORKS:
        path, torch_input = folder / f"{network.__name__}.onnx", torch.randn(*shape)
        batch = torch.export.Dim("batch", min=1)
        torch.onnx.export(network().eval(), (torch_input,), str(path), dynamo=True, opset_version=21, external_data=False,
                          input_names=["image"], output_names=["logits"], dynamic_shapes=({0: batch},))  # fmt: skip
        data = folder / "data.npz"
        np.savez(data, image=np.random.default_rng(0).standard_normal((64, *shape[1:])).astype(np.float32))
        found.append(path.read_bytes())
        for number, passes in enumerate(PASSES):
            out = folder / f"{network.__name__}{number}"
            if (
                optimize(
                    [
                        str(path),
                        "--passes",
                        passes,
                        "--calibration",
                        str(data),
                        "--out",
                        str(out),
                        "--no-latency",
                        "--quiet",
                    ]
                )
                == 0
            ):
                found.append((out / "model.onnx").read_bytes())
    return [wire.split(content, lambda piece: piece.nbytes >= wire.CUT_BYTES)[0] for content in found]


def messages(skeleton: bytes) -> list[bytes]:
    """The fields of the graph, then those of the model around it."""
    model = onnx.ModelProto.FromString(skeleton)
    graph = model.graph
    parts = [onnx.GraphProto(node=[node]).SerializeToString() for node in graph.node]
    parts += [onnx.GraphProto(initializer=[tensor]).SerializeToString() for tensor in graph.initializer]
    parts += [onnx.GraphProto(input=[value]).SerializeToString() for value in graph.input]
    parts += [onnx.GraphProto(output=[value]).SerializeToString() for value in graph.output]
    parts += [onnx.GraphProto(value_info=[value]).SerializeToString() for value in graph.value_info]
    model.ClearField("graph")
    return [*parts, model.SerializeToString()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept: list[bytes] = []
        # The most telling comes last, where a dictionary is nearest: so the selection runs from the end.
        for skeleton in reversed(skeletons(Path(folder))):
            for message in reversed(messages(skeleton)):
                known = zstandard.ZstdCompressionDict(
                    b"".join(reversed(kept)) + bytes(8), dict_type=zstandard.DICT_TYPE_RAWCONTENT
                )
                packed = (
                    len(
                        zstandard.ZstdCompressor(
                            level=19, dict_data=known, write_content_size=False
                        ).compress(message)
                    )
                    - 8
                )
                if packed >= NOVEL * len(message) and sum(map(len, kept)) + len(message) <= LIMIT_BYTES:
                    kept.append(message)
        Path(sys.argv[1]).write_bytes(b"".join(reversed(kept)))
        print(f"{sum(map(len, kept)):,} bytes of {len(kept)} messages")


if __name__ == "__main__":
    main()
