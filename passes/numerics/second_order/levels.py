"""Integers that answer best together: each weight goes to the level at which, the others as they are, its row errs least,
over and over until none moves.

    row by row:   E |s q x - y|^2  =  (s q - w) C (s q - w)' - 2 (s q - w) R' + const        R = C_yx - w C_xx
    coordinate j: q_j  <-  the level next to  q_j - G_j / (s C_jj)                           G = (s q - w) C - R

The loss of a linear layer is quadratic in its weight, so the moments of its inputs and answers are all that a step needs.
Columns are visited from first to last; what a block of them changes in the gradient of the others is one product.
Sources: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, sections 3.1 to 3.3, for
the loss row by row; Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", 2023, section 3, for
the descent.
"""

import numpy as np

BLOCK = 64
"""Columns whose gradients are brought up to date one by one."""
ENOUGH = 1e-4
"""A round over all columns that betters the loss by a smaller share of it is the last."""


def descend(
    levels: np.ndarray,
    scale: np.ndarray,
    weight: np.ndarray,
    covariance: np.ndarray,
    residual: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray] | tuple[float, float],
    rounds: int,
) -> np.ndarray:
    """Levels [groups, r, d], float32 whole numbers, of no larger loss than `levels`, after `rounds` at most.

    `scale` [groups, r], `weight` [groups, r, d], `covariance` [groups, d, d] with a positive diagonal, `residual` [groups,
    r, d], as above; `bounds`: lowest and highest level, numbers or [groups, r, d].
    """
    found = levels.astype(np.float32)
    step, matrix = scale.astype(np.float32)[..., None], covariance.astype(np.float32)
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), found.shape) for bound in bounds)
    exact, wanted = weight.astype(np.float32), residual.astype(np.float32)
    before = _loss(found * step - exact, matrix, wanted)
    for _ in range(rounds):
        tried = _round(found, step, exact, matrix, wanted, (low, high))
        after = _loss(tried * step - exact, matrix, wanted)
        if after >= before:
            break
        gain, found, before = before - after, tried, after
        if gain < ENOUGH * abs(after):
            break
    return found


def rescale(
    levels: np.ndarray,
    scale: np.ndarray,
    weight: np.ndarray,
    covariance: np.ndarray,
    residual: np.ndarray,
) -> np.ndarray:
    """The scale [groups, r] of each row of least loss for these levels; that which it has, where none is positive."""
    spread = levels @ covariance
    energy = np.einsum("grd,grd->gr", spread, levels)
    wanted = np.einsum("grd,grd->gr", spread, weight) + np.einsum("grd,grd->gr", levels, residual)
    found: np.ndarray = np.divide(
        wanted, energy, out=scale.astype(np.float64), where=(wanted > 0) & (energy > 0)
    )
    return found


def _round(
    levels: np.ndarray,
    step: np.ndarray,
    weight: np.ndarray,
    matrix: np.ndarray,
    residual: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    found, (low, high) = levels.copy(), bounds
    diagonal = np.einsum("gii->gi", matrix)
    gradient = (found * step - weight) @ matrix - residual
    for start in range(0, found.shape[-1], BLOCK):
        part = slice(start, start + BLOCK)
        inner, own = matrix[:, part, part], gradient[..., part].copy()
        old = found[..., part].copy()
        for column in range(old.shape[-1]):
            place = start + column
            now = found[..., place]
            move = own[..., column] / (step[..., 0] * diagonal[:, None, place])
            new = np.clip(np.rint(now - move), low[..., place], high[..., place])
            change = (new - now) * step[..., 0]
            if change.any():
                own += change[..., None] * inner[:, None, column]
                found[..., place] = new
        moved = (found[..., part] - old) * step
        if moved.any():
            gradient += moved @ matrix[:, part]
    return found


def _loss(change: np.ndarray, matrix: np.ndarray, residual: np.ndarray) -> float:
    return float(np.einsum("grd,grd->", change @ matrix - 2 * residual, change, dtype=np.float64))
