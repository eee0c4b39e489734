"""The truncated SVD of a matrix by its smaller Gram matrix.

W = U diag(s) V^T, W [d, i]. Of the shorter side, G = W W^T = U diag(s^2) U^T is [min(d, i)] squared; and the
nearest matrix of rank r is the projection U_r (U_r^T W), whose factors need no V. One pass over W in float64,
a block at a time, and one eigendecomposition give the energies s^2 and U: a quarter of the work of the SVD
of a wide matrix, and no float64 copy of it.

G squares singular values, so those below 1e-8 of the largest (the root of float64's rounding) are lost in
noise. What float32 weights are rounded by is larger: it moves each of their singular values by up to 6e-8 of
the matrix's norm.
Source: Golub and Van Loan, "Matrix Computations", 4th edition, sections 8.6.1 and 8.6.3.
"""

from collections.abc import Iterator

import numpy as np

BLOCK_ELEMENTS = 1 << 22
"""Elements that are in memory as float64 at a time."""


def weight_spectrum(matrix: np.ndarray) -> np.ndarray:
    """Squared singular values of `matrix` [d, i], descending, float64 [min(d, i)]."""
    return np.maximum(np.linalg.eigvalsh(_gram(_wide(matrix)))[::-1], 0.0)


def principal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`weight_spectrum`, the singular vectors of the shorter side that belong to it, as columns, float32)."""
    energies, vectors = np.linalg.eigh(_gram(_wide(matrix)))
    return np.maximum(energies[::-1], 0.0), vectors[:, ::-1].astype(np.float32)


def truncated(
    matrix: np.ndarray, rank: int, vectors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Factors [d, rank] and [rank, i], float32, of the nearest matrix of that rank to `matrix` [d, i].

    `vectors`: those of `principal`, if they are known.
    """
    if vectors is None:
        vectors = principal(matrix)[1]
    wide, basis = _wide(matrix), vectors[:, :rank]
    across, exact = np.empty((rank, wide.shape[1]), np.float32), basis.T.astype(np.float64)
    for part, block in _blocks(wide):
        across[:, part] = exact @ block
    return (basis, across) if wide is matrix else (across.T, basis.T)


def _wide(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _gram(wide: np.ndarray) -> np.ndarray:
    """`wide` @ `wide`.T, float64."""
    gram = np.zeros((len(wide), len(wide)))
    for _, block in _blocks(wide):
        gram += block @ block.T
    return gram


def _blocks(wide: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some columns at a time: which, and their values as float64."""
    step = max(BLOCK_ELEMENTS // len(wide), 1)
    for start in range(0, wide.shape[1], step):
        part = slice(start, start + step)
        yield part, wide[:, part].astype(np.float64)
