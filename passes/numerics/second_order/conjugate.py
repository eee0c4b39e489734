"""Least squares for rows that each have free places of their own, all at once.

    min over x with x = 0 where not free:  x A x' - 2 b x'       one system for each row, A the same

By conjugate gradients with the diagonal as preconditioner (Hestenes and Stiefel, "Methods of conjugate gradients for
solving linear systems", 1952): a step is one product of matrices for all rows, where to factor a matrix for each row of a
layer of 1000 x 1280 takes fifty times as long as all steps. Rows that are done take steps of 0.
"""

import numpy as np

LEAST_GAIN = 1e-5
"""Of all that the steps so far gained, what another must, over all rows."""
MOST_STEPS = 200


def solve_free(matrix: np.ndarray, right: np.ndarray, free: np.ndarray) -> np.ndarray:
    """x float32 [groups, r, d], 0 where not `free`, of A positive definite [groups, d, d] and b [groups, r, d]."""
    scale = np.einsum("gii->g", matrix)[:, None, None] / matrix.shape[1]
    singles = (matrix / scale).astype(np.float32)
    mask = free.astype(np.float32)
    residual = (right / scale).astype(np.float32) * mask
    inverse = (1 / np.einsum("gii->gi", singles))[:, None]
    found = np.zeros_like(residual)
    towards = residual * inverse
    left = np.einsum("grd,grd->gr", residual, towards)
    gained = 0.0
    for _ in range(MOST_STEPS):
        image = (towards @ singles) * mask
        curved = np.einsum("grd,grd->gr", towards, image)
        step = np.divide(left, curved, out=np.zeros_like(left), where=curved > 0)
        found += step[..., None] * towards
        residual -= step[..., None] * image
        gain = float((step * left).sum(dtype=np.float64))
        gained += gain
        if not gain > LEAST_GAIN * gained:
            break
        steepest = residual * inverse
        rest = np.einsum("grd,grd->gr", residual, steepest)
        towards *= np.divide(rest, left, out=np.zeros_like(left), where=left > 0)[..., None]
        towards += steepest
        left = rest
    return found
