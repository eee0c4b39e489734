"""The product [M, K] x [K, N] of a layer cut along all three at once, over a grid of m x n x k workers.

Each worker has a block of the inputs, [M/m, K/k], of the weights, [K/k, N/n], and of the results, [M/m, N/n]: n workers
gather the inputs, k workers sum the results, m workers sum the gradients of weights, and the backward pass turns each move
round. In elements, a worker sends

    2 (m-1)/m W/(k n)  +  2 (n-1)/n I/(m k)  +  4 (k-1)/k O/(m n)

where I, W and O are the input, the weights and the result: of a convolution the c h w b of its input, not the copies that
im2col makes of them. Biases belong to the results, of which k workers have the same. m alone is data parallelism, n filters, k channels. Source: the grids of Solomonik and Demmel,
"Communication-Optimal Parallel 2.5D Matrix Multiplication and LU Factorization Algorithms", Euro-Par 2011.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_lathe.runtime.training.parallel.costs import COPIES, ELEMENT_BYTES
from onnx_lathe.runtime.training.parallel.geometry import CONV, GEMM, Layer, largest


@dataclass(frozen=True)
class Cut:
    """`sent`: bytes a worker sends in a step; `memory`: bytes of its weights, gradients, momentum and activations."""

    m: int
    n: int
    k: int
    sent: float
    memory: float

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}"


def cuts(layer: Layer, workers: int, batch: int) -> list[Cut]:
    """Every grid of the workers that the layer is large enough for, the one that sends least first; M is cut by samples.
    None for a layer that is no product of its own.
    """
    if layer.kind not in (CONV, GEMM):
        return []
    found = [
        _cut(layer, m, n, k, batch)
        for m, n, k in _factors(workers)
        if m <= batch
        and n <= layer.filters
        and k <= layer.channels
        and (layer.groups == 1 or (k == 1 and n <= layer.groups))
    ]
    return sorted(found, key=lambda cut: (cut.sent, cut.memory))


def _factors(workers: int) -> Iterator[tuple[int, int, int]]:
    divisors = [one for one in range(1, workers + 1) if workers % one == 0]
    return ((m, n, workers // (m * n)) for m in divisors for n in divisors if workers % (m * n) == 0)


def _cut(layer: Layer, m: int, n: int, k: int, batch: int) -> Cut:
    # all workers read the model's inputs, and groups their own channels
    gathered = batch * layer.input_size if layer.reads and layer.groups == 1 else 0
    weights = 2 * (m - 1) / m * layer.matrix / (k * n) + 2 * (m * k - 1) / (m * k) * layer.vectors / n
    inputs = 2 * (n - 1) / n * gathered / (m * k)
    results = 4 * (k - 1) / k * batch * layer.result_size / (m * n)
    kept = largest(batch, m) * (largest(layer.kept_input, k) + largest(layer.kept_result, n))
    held = COPIES * (largest(layer.matrix, k * n) + largest(layer.vectors, n)) + kept
    return Cut(m, n, k, ELEMENT_BYTES * (weights + inputs + results), ELEMENT_BYTES * held)
