"""The learning rate, and with one cycle the momentum, over a training.

cosine     a linear rise during the warm-up, then half a cosine down to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, section 3)
onecycle   half a cosine up from 1/25, and down to 1/10,000; momentum falls by 0.1 and rises again (Smith and Topin,
           "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018, section 3)
constant   a linear rise, then the peak
"""

import math

WARMUPS = {"cosine": 0.05, "onecycle": 0.3, "constant": 0.05}
"""Share of the training during which the rate rises, where the option is none."""

START, END = 1 / 25, 1e-4
"""Of the peak rate, with one cycle."""
CYCLED_MOMENTUM = 0.1


def rate(decay: str, progress: float, warmup: float | None) -> float:
    """Share of the peak rate at `progress`, 0 to 1, of all samples."""
    rise = WARMUPS[decay] if warmup is None else warmup
    if progress < rise:
        return progress / rise if decay != "onecycle" else _between(START, 1.0, progress / rise)
    if decay == "constant":
        return 1.0
    return _between(1.0, 0.0 if decay == "cosine" else END, min(1.0, (progress - rise) / (1 - rise)))


def momentum(decay: str, progress: float, warmup: float | None, base: float) -> float:
    """SGD's momentum or AdamW's first beta at `progress`; `base` unless it cycles."""
    if decay != "onecycle":
        return base
    return max(0.0, base - CYCLED_MOMENTUM * rate(decay, progress, warmup))


def _between(start: float, end: float, done: float) -> float:
    """On half a cosine from one to the other."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
