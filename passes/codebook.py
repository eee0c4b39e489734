"""Weight sharing: each weight becomes one of a few shared values, stored as a codebook and 4-bit or 8-bit indices.

    W f32[shape]   becomes   Gather(codebook f32[K], Cast(indices UINT4 or UINT8 [shape] -> INT32)) -> W

Values are shared within one tensor, and chosen by k-means from a linear start (passes/numerics/kmeans.py says why). Retraining then trains
the codebook: the gradient of Gather sums over all weights that share a value. Zeros named in `lathe.sparse` stay exactly zero, and nothing
else becomes zero: what was pruned is the choice of `prune`, and a weight that fell to zero here could not be trained any more.
Source: Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding",
ICLR 2016, section 3.
"""

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from passes.base import Context, Pass, PassReport, option
from passes.graph import Constant, Graph, Node, Variable
from passes.graph.layers import Weight, codebook_of, other_use, read, weights
from passes.graph.model import FOUR_BIT_IR_VERSION, FOUR_BIT_OPSET, sparse_tensors, taken_names, unused_name
from passes.graph.patterns import by_weight
from passes.graph.storage import not_float
from passes.numerics.kmeans import distinct_values, kmeans_1d, signal_and_noise
from passes.registry import register

OVERHEAD_BYTES = 220
OVERHEAD_NAMES = 9
"""What a codebook adds to the file besides its numbers: two nodes and an initializer, in which the weight's name appears nine times."""


@register
class Codebook(Pass):
    """Gives the weights of each layer a few shared values (k-means), stored as a codebook and indices."""

    name = "codebook"
    after = {"fold": "a folded batch normalization gives every channel values of its own"}
    before = {"int8": "values are shared among float weights; int8 then quantizes what the codebook decodes to"}

    @dataclass(frozen=True)
    class Config:
        bits: int = option(4, "2^bits values are shared; up to 4 bits the file has 4-bit indices, from opset 21 on", low=1, high=8)
        centroids: int | None = option(None, "number of shared values, instead of 2^bits", low=2, high=256)
        layers: dict[str, int] = option({}, "bits for weights or layers by name pattern; 0 leaves one as it is", low=0, high=8)
        iterations: int = option(300, "most iterations of k-means", low=1)
        # With 256 weights, a codebook and the two nodes that decode it still cost half of what 4-bit indices save.
        min_size: int = option(256, "smaller weights are left as they are", unit="elements", low=1)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip))
        bits = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "codebook(layers=...)")
        sparse, taken = sparse_tensors(graph), taken_names(graph)
        signal = noise = 0.0
        for weight in found:
            context.progress(f"clustering {weight.name}")
            own_bits = bits.get(weight.name)
            k = (self.config.centroids or 2**self.config.bits) if own_bits is None else own_bits and 2**own_bits
            shared = self._refusal(graph, weight, k) or self._share(graph, weight.tensor, k, weight.name in sparse, taken)
            if isinstance(shared, str):
                report.skip(weight.nodes[0].name, shared)
                continue
            signal, noise = signal + shared.signal, noise + shared.noise
            report.edit(weight.nodes[0].name, shared.text())
        if noise:
            report.metrics["weight_sqnr_db"] = 10 * math.log10(signal / noise)
        return report

    def _refusal(self, graph: Graph, weight: Weight, k: int) -> str | None:
        if codebook_of(weight.tensor) is not None:
            return "its weight is a codebook already"
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = int(np.prod(weight.tensor.shape))
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if k == 0:
            return "its bits are set to 0"
        return other_use(graph, weight)

    def _share(self, graph: Graph, tensor: Constant, k: int, keep_zero: bool, taken: set[str]) -> "_Shared | str":
        """Puts the codebook into the graph, its names into `taken`; or says why not."""
        values = read(tensor)
        if not np.isfinite([values.min(), values.max()]).all():
            return "its weight has NaN or infinite elements"
        if keep_zero and k < 3 and distinct_values(values, k) is None:
            return "its zeros must stay, and negative, zero and positive weights need at least 3 values; give it 2 bits"
        centroids, indices = kmeans_1d(values, k, iterations=self.config.iterations, keep_zero=keep_zero)
        narrow = centroids.size <= 16 and graph.opset >= FOUR_BIT_OPSET
        shared = _Shared(centroids.size, 4 if narrow else 8, *signal_and_noise(values, centroids, indices))
        stored = -(-indices.size * shared.bits // 8) + centroids.nbytes + OVERHEAD_BYTES + OVERHEAD_NAMES * len(tensor.name)
        if stored >= values.nbytes:
            return f"its {values.nbytes} bytes would become {stored}"
        _replace(graph, tensor, centroids, indices.view(ml_dtypes.uint4) if narrow else indices, taken)
        return shared


@dataclass(frozen=True)
class _Shared:
    values: int
    bits: int
    signal: float
    noise: float

    def text(self) -> str:
        quality = f"{10 * math.log10(self.signal / self.noise):.1f} dB signal to noise" if self.noise else "exact"
        return f"{self.values} shared values, {self.bits}-bit indices, {quality}"


def _replace(graph: Graph, tensor: Constant, centroids: np.ndarray, indices: np.ndarray, taken: set[str]) -> None:
    """Makes the initializer a variable of the same name that is decoded from the codebook; its readers stay connected."""

    def name(suffix: str) -> str:
        free = unused_name(f"{tensor.name}_{suffix}", taken)
        taken.add(free)
        return free

    shape = tuple(tensor.shape)
    codebook, stored, wide = Constant(name("codebook"), centroids), Constant(name("indices"), indices), Variable(name("indices_int32"))
    cast = Node("Cast", name("cast"), {"to": onnx.TensorProto.INT32}, [stored], [wide])
    gather = Node("Gather", name("gather"), {"axis": 0}, [codebook, wide])
    tensor.to_variable(np.float32, shape)
    tensor.type = "tensor_type"  # onnx-graphsurgeon 0.6 forgets it, and cannot export the tensor without
    gather.outputs.append(tensor)
    graph.nodes.extend([cast, gather])
    if indices.dtype == ml_dtypes.uint4:
        graph.ir_version = max(graph.ir_version or 0, FOUR_BIT_IR_VERSION)
