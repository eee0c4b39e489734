"""What each layer may cost: of several settings for each, the ones of least loss together within a budget.

    minimize  sum_l loss_l(s_l)   over settings s_l   with   sum_l cost_l(s_l) <= budget

Source: Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", ICML 2022, section 3.2 (a dynamic
programme over discretized costs).
"""

from collections.abc import Sequence

import numpy as np

UNITS = 4000
"""Into which the budget is divided. Costs are rounded up, so that it holds."""


def allocate(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float) -> list[int] | None:
    """For each layer the place of its setting; `losses` and `costs` of each have an entry for every setting. None if
    the cheapest settings cost more than the budget. Of equal losses the cheaper setting is taken.
    """
    least = sum(float(one.min()) for one in costs)
    if least > budget:
        return None
    # what has to be spent anyway is no part of what is divided: rounding up adds to the rest alone
    spare = budget - least
    if spare <= 0:
        return [int(np.argmin(cost)) for cost in costs]
    unit = spare / UNITS
    best = np.zeros(UNITS + 1)
    taken: list[np.ndarray] = []
    for loss, cost in zip(losses, costs, strict=True):
        steps = np.ceil((cost - cost.min()) / unit - 1e-9).astype(np.int64)
        new, choice = np.full(UNITS + 1, np.inf), np.zeros(UNITS + 1, np.int64)
        for setting in np.argsort(cost, kind="stable"):
            step = int(steps[setting])
            if step > UNITS:
                continue
            total = np.full(UNITS + 1, np.inf)
            total[step:] = best[: UNITS + 1 - step] + loss[setting]
            better = total < new
            new[better], choice[better] = total[better], setting
        best = new
        taken.append(np.where(np.isfinite(new), choice, -1))
    found, left = [], int(np.argmin(best))
    for cost, choice in zip(reversed(costs), reversed(taken), strict=True):
        setting = int(choice[left])
        found.append(setting)
        left -= int(np.ceil((cost[setting] - cost.min()) / unit - 1e-9))
    return found[::-1]
