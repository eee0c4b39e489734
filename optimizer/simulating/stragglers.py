"""Machines that are sometimes slow: what a step of n of them takes if all wait for all, for all but some, or for nobody.

The arithmetic of each machine takes f times as long in each step, f drawn anew; messages take what they take. Backup
workers: of n machines the first n - b make the update (Chen et al., "Revisiting Distributed Synchronous SGD", 2016).
Asynchronous: each sends its gradients to a server and gets weights back when it is done (Dean et al., "Large Scale
Distributed Deep Networks", NeurIPS 2012); the server's one link carries them all.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.errors import UsageError

BACKUPS = 0.05
"""Share of machines that nobody waits for, unasked."""
DRAWS = 2_000_000
"""Factors at least, over all steps, that a mean is of; and so many at a time in memory."""
FEWEST_STEPS = 200

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
"""Factors f >= 0 of the shape [steps, machines]."""
FORMS = "lognormal=0.3 (its sigma), exponential=0.2 (mean delay), or slow=0.05x10 (a share of steps, ten times as long)"


@dataclass(frozen=True)
class Stragglers:
    """`text` as the user wrote it; `mean` of a factor."""

    text: str
    draw: Draw
    mean: float


@dataclass(frozen=True)
class Row:
    """On `machines` with a few samples each: mean seconds between updates, and samples a second."""

    machines: int
    synchronous_s: float
    backups: int
    backup_s: float
    asynchronous_s: float
    synchronous_rate: float
    backup_rate: float
    asynchronous_rate: float

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def parse_stragglers(text: str) -> Stragglers:
    """Raises UsageError for a distribution that is none."""
    found = re.fullmatch(r"(lognormal|exponential|slow)=(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?))?", text.strip())
    if found is None or (found[3] is not None) != (found[1] == "slow"):
        raise UsageError(f"--stragglers takes {FORMS}, not '{text}'")
    size = float(found[2])
    if found[1] == "lognormal":
        if size > 3:
            raise UsageError(
                f"--stragglers '{text}': a sigma of more than 3 is no machine's; give a smaller one"
            )
        return Stragglers(
            text, lambda rng, shape: np.exp(size * rng.standard_normal(shape)), math.exp(size**2 / 2)
        )
    if found[1] == "exponential":
        return Stragglers(text, lambda rng, shape: 1 + size * rng.standard_exponential(shape), 1 + size)
    times = float(found[3])
    if size > 1 or times < 1:
        raise UsageError(f"--stragglers '{text}': a share up to 1 of steps, and a factor from 1 on")
    return Stragglers(
        text, lambda rng, shape: np.where(rng.random(shape) < size, times, 1.0), 1 + size * (times - 1)
    )


def slowest(stragglers: Stragglers, machines: int, waited: Sequence[int], seed: int) -> list[float]:
    """Mean over many steps of the factor of the w-th fastest of the machines, for each w in `waited`."""
    rng = np.random.default_rng(seed)
    steps = max(FEWEST_STEPS, DRAWS // machines)
    places = [count - 1 for count in waited]
    sums, done = np.zeros(len(waited)), 0
    while done < steps:
        now = min(steps - done, max(1, DRAWS // machines))
        drawn = np.partition(stragglers.draw(rng, (now, machines)), places, axis=1)
        sums += drawn[:, places].sum(axis=0)
        done += now
    return [float(one) for one in sums / steps]


@dataclass(frozen=True)
class Load:
    """Of one step of one machine: seconds of arithmetic, seconds that it waits for messages, seconds in which a link
    carries the weights once, and samples.
    """

    arithmetic: float
    waiting: float
    weights: float
    samples: int


def rows_of(
    loads: Sequence[tuple[int, Load]], stragglers: Stragglers, seed: int, backups: int | None = None
) -> list[Row]:
    """`loads`: by the number of machines; `backups`: of all, unasked BACKUPS of them and one at least."""
    found = []
    for machines, load in loads:
        spare = max(1, round(BACKUPS * machines)) if backups is None else backups
        spare = min(spare, machines - 1)
        every, most = slowest(stragglers, machines, [machines, machines - spare], seed)
        synchronous = load.waiting + load.arithmetic * every
        backup = load.waiting + load.arithmetic * most
        # a machine alone sends gradients and gets weights; all of them share the server's link, in and out at once
        own = load.arithmetic * stragglers.mean + (2 * load.weights if machines > 1 else 0.0)
        asynchronous = max(own / machines, load.weights if machines > 1 else 0.0)
        found.append(
            Row(
                machines, synchronous, spare, backup, asynchronous,
                machines * load.samples / synchronous,
                (machines - spare) * load.samples / backup,
                load.samples / asynchronous,
            )
        )  # fmt: skip
    return found
