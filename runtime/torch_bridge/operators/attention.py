"""Attention and RotaryEmbedding, the operators that transformers are exported to from opset 23 on."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.arrays import torch_type
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator


def _heads(x: Tensor, count: int) -> Tensor:
    """[batch, length, count * size] -> [batch, count, length, size]."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


@operator("Attention", since=23)
def attention(node: Node) -> Function:
    """Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1; with fewer heads for keys than
    queries Ainslie et al., 2023.
    """
    query_heads, key_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    softcap, mode, precision = (
        node.number("softcap", 0.0),
        node.integer("qk_matmul_output_mode"),
        node.integer("softmax_precision"),
    )
    limits = _Limits(node)

    def run(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None,
        past_k: Tensor | None = None, past_v: Tensor | None = None, lengths: Tensor | None = None,
    ) -> Any:  # fmt: skip
        flat, offset = q.dim() == 3, 0
        if flat:
            q, k, v = _heads(q, query_heads), _heads(k, key_heads), _heads(v, key_heads)
        if past_k is not None and past_v is not None:
            k, v, offset = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2), past_k.shape[2]
        present, scale = (k, v), node.number("scale", 1 / math.sqrt(q.shape[3]))
        if k.shape[1] != q.shape[1]:
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        bias = limits.bias(q, k, mask, offset, lengths)
        if bias is None and not softcap and not precision and node.used == 1:
            result, shown = F.scaled_dot_product_attention(q, k, v, scale=scale), None
        else:
            root = math.sqrt(scale)
            raw = (q * root) @ (k * root).transpose(2, 3)
            capped = softcap * torch.tanh(raw / softcap) if softcap else raw
            scores = capped if bias is None else capped + bias
            weights = _weights(scores, bias, torch_type(precision) if precision else scores.dtype).to(q.dtype)
            result, shown = weights @ v, (raw, capped, scores, weights)[mode]
        if flat:
            result = result.transpose(1, 2).flatten(2)
        return (result, *present, shown) if node.used > 1 else result

    return run


def _weights(scores: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Softmax in `dtype`; zeros for a query that may see no key."""
    if bias is None:
        return torch.softmax(scores.to(dtype), -1)
    blind = torch.isneginf(bias.amax(-1, keepdim=True))
    return torch.softmax(scores.masked_fill(blind, 0).to(dtype), -1).masked_fill(blind, 0)


class _Limits:
    """Which keys a query sees."""

    def __init__(self, node: Node) -> None:
        self.causal, self.left, self.right = (
            node.integer("is_causal"),
            node.integer("left_window_size", -1),
            node.integer("right_window_size", -1),
        )

    def bias(
        self, q: Tensor, k: Tensor, mask: Tensor | None, offset: int, lengths: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores [batch, heads, queries, keys] before the softmax: -inf for a key not
        seen. None for all 0.
        """
        keys = torch.arange(k.shape[2], device=q.device)
        start = offset if lengths is None else (lengths - q.shape[2]).reshape(-1, 1, 1, 1)
        ahead = keys - (torch.arange(q.shape[2], device=q.device)[:, None] + start)
        seen = []
        if self.causal:
            seen.append(ahead <= 0)
        if self.left >= 0:
            seen.append(ahead >= -self.left)
        if self.right >= 0:
            seen.append(ahead <= self.right)
        if lengths is not None:
            seen.append(keys < lengths.reshape(-1, 1, 1, 1))
        bias = None
        if mask is not None:
            bias = (
                mask
                if mask.dtype != torch.bool
                else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
            )
            bias = F.pad(bias, (0, k.shape[2] - mask.shape[-1]), value=-torch.inf)
        for allowed in seen:
            bias = (q.new_zeros(()) if bias is None else bias).masked_fill(~allowed, -torch.inf)
        return bias


@operator("RotaryEmbedding", since=23)
def rotary_embedding(node: Node) -> Function:
    """Su et al., "RoFormer", 2021, section 3.4.2. Caches [positions, half], or [batch, length, half]
    without position_ids.
    """
    heads, part, interleaved = (
        node.integer("num_heads"),
        node.integer("rotary_embedding_dim"),
        node.integer("interleaved"),
    )

    def run(x: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor | None = None) -> Tensor:
        split = _heads(x, heads) if x.dim() == 3 else x
        rotated, rest = split.tensor_split([part or split.shape[3]], 3)
        if positions is not None:
            cosine, sine = cosine[positions], sine[positions]
        cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
        first, second = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
        turned = cosine * first - sine * second, sine * first + cosine * second
        joined = torch.stack(turned, -1).flatten(3) if interleaved else torch.cat(turned, -1)
        result = torch.cat([joined, rest], 3)
        return result.transpose(1, 2).flatten(2) if x.dim() == 3 else result

    return run
