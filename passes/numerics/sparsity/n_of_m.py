"""N:M sparsity: of every M neighbours along an axis, the N largest magnitudes stay.

Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378, section 3: 2:4 is what
sparse tensor cores compute.
"""

import numpy as np

_CHUNK = 1 << 20


def nm_kept(values: np.ndarray, axis: int, n: int, m: int) -> np.ndarray:
    """What stays: bool, shaped like `values` (float32, its size along `axis` a multiple of `m`). Of equal
    magnitudes, later ones stay.
    """
    moved = np.moveaxis(values, axis, -1)
    groups = np.ascontiguousarray(moved).reshape(-1, m)
    kept = np.ones(groups.shape, bool)
    for start in range(0, len(groups), _CHUNK):
        part = np.abs(groups[start : start + _CHUNK])
        least = np.argsort(part, axis=1, kind="stable")[:, : m - n]
        np.put_along_axis(kept[start : start + _CHUNK], least, False, axis=1)
    return np.moveaxis(kept.reshape(moved.shape), -1, axis)


def holds(values: np.ndarray, axis: int, n: int, m: int) -> bool:
    """Whether of every `m` neighbours at most `n` are not zero; false where the axis does not divide."""
    if values.shape[axis] % m:
        return False
    return bool((np.count_nonzero(np.moveaxis(values, axis, -1).reshape(-1, m), axis=1) <= n).all())
