"""Attention, and vision transformers as PyTorch exports them, as ncnn's layers."""

import io
import warnings

import numpy as np
import onnx
import pytest
import torch

from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

HEADS = "float[1, 3, 7, 8]"


def attention(
    attributes: str = "", more: str = "", inputs: str = "", **constants: np.ndarray
) -> onnx.ModelProto:
    text = f"""({HEADS} q, {HEADS} k, float[1, 3, 7, 5] v{inputs}) => (float[1, 3, 7, 5] y) {{
        [layer] y = Attention {attributes} (q, k, v{more})
    }}"""
    return build(text, opset=23, **constants)


def test_attention() -> None:
    assert types(agree(attention()))[-3:] == ["MatMul", "Softmax", "MatMul"]
    agree(attention("<scale = 0.3>"))


@pytest.mark.parametrize("shape", [(7, 7), (1, 1, 7, 7), (1, 3, 7, 7), (3, 7, 7)])
def test_masks(shape: tuple[int, ...]) -> None:
    agree(attention(more=", mask", mask=random(*shape)))
    if len(shape) != 3:
        keep = np.random.default_rng(0).integers(0, 2, shape).astype(bool)
        keep[..., 0] = True
        agree(attention(more=", mask", mask=keep))
    sizes = ", ".join(map(str, shape))
    agree(attention(more=", mask", inputs=f", float[{sizes}] mask"))


def test_causal() -> None:
    agree(attention("<is_causal = 1>"))


def test_heads_side_by_side() -> None:
    text = """(float[1, T, 24] q, float[1, S, 24] k, float[1, S, 12] v) => (float[1, T, 12] y) {
        y = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v)
    }"""
    sizes = [{"q": (1, t, 24), "k": (1, s, 24), "v": (1, s, 12)} for t, s in ((7, 5), (16, 9))]
    agree(build(text, opset=23), *sizes)


def test_what_ncnn_computes_otherwise_is_refused() -> None:
    shared = f"""({HEADS} q, float[1, 1, 7, 8] k, float[1, 1, 7, 8] v) => ({HEADS} y) {{
        [layer] y = Attention(q, k, v)
    }}"""
    for model, reason in (
        (build(shared, opset=23), "share keys"),
        (attention("<softcap = 2.0>"), "softcap"),
        (attention(more=", mask", inputs=", bool[7, 7] mask"), "yes or no"),
    ):
        ((node, _, found),) = refusals(model)
        assert node == "layer"
        assert reason in found


class Block(torch.nn.Module):
    """A layer of DeiT: one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.back = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        each = width // self.heads
        q, k, v = self.qkv(self.first(x)).reshape(batch, steps, 3, self.heads, each).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * each**-0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, steps, width))
        return x + self.back(torch.nn.functional.gelu(self.wide(self.second(x))))


class Transformer(torch.nn.Module):
    """Patches, a class token and positions, layers, and a head on the class token."""

    def __init__(self, layers: list[torch.nn.Module], width: int) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 4, 4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, width))
        self.places = torch.nn.Parameter(torch.randn(1, 17, width))
        self.layers = torch.nn.ModuleList(layers)
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def encoder_layer(width: int, heads: int) -> torch.nn.Module:
    return torch.nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def exported(model: torch.nn.Module, x: torch.Tensor, opset: int, dynamo: bool = False) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), buffer, opset_version=opset, dynamo=dynamo, verbose=False)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize(
    "kind, opset, dynamo",
    [("block", 13, False), ("block", 17, False), ("encoder", 17, False), ("encoder", 18, True)],
)
def test_vision_transformers(kind: str, opset: int, dynamo: bool) -> None:
    torch.manual_seed(0)
    make = Block if kind == "block" else encoder_layer
    model = Transformer([make(24, 3) for _ in range(2)], 24)
    layers = agree(exported(model, torch.randn(1, 3, 16, 16), opset, dynamo))
    found = types(layers)
    counts = {name: found.count(name) for name in ("LayerNorm", "GELU", "Softmax", "Erf", "Reduction")}
    assert counts == {"LayerNorm": 5, "GELU": 2, "Softmax": 2, "Erf": 0, "Reduction": 0}


def test_attention_of_pytorch() -> None:
    torch.manual_seed(0)

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    agree(exported(Own(), torch.randn(1, 9, 24), 17))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_of_pytorch(kind: str, dynamo: bool) -> None:
    torch.manual_seed(0)

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(torch.nn, kind)(5, 6, num_layers=2, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x)[0])

    agree(exported(Own(), torch.randn(1, 9, 5), 18, dynamo))
