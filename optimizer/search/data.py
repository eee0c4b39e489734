"""Which samples a search judges settings on: never those that give the final figure."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx

from onnx_lathe.errors import DataError
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.services import CALIBRATION_SAMPLES, Roles, open_roles
from onnx_lathe.runtime.data import DataSource, take
from onnx_lathe.runtime.data.kept import KeptSource, hold_apart, keep, part_off

MOST = 5000
"""Samples that judge at most."""
OTHERS = 10_000
"""Samples that confirm at most, where there are others than those that choose."""
CONFIRMED_FROM, CONFIRMING = 300, 1 / 3
"""Samples from which on, and the share of them, that are kept apart to confirm the winner where there are none."""


@dataclass(frozen=True)
class Division:
    """`judging` chooses settings; `roles` are those that passes see meanwhile, in which no sample of it is.
    `confirming` has chosen nothing, and confirms the winner; None where there are too few samples for that. `spare`:
    further samples, of which nothing is read yet.
    """

    judging: KeptSource
    roles: Roles
    note: str
    confirming: DataSource | None = None
    spare: DataSource | None = None


def confirmed_apart(whole: Division, seed: int, confirms: Callable[[int], bool] = bool) -> Division:
    """The division with samples kept apart from choosing: spare ones, or a third of its own if it has enough.
    `confirms`: whether so many samples can confirm anything.
    """
    samples = whole.judging
    spare = whole.spare.count or 0 if whole.spare is not None else 0
    if (
        whole.spare is not None
        and confirms(spare)
        and spare >= max(CONFIRMED_FROM * CONFIRMING, (samples.count or 0) / 2)
    ):
        others = take(whole.spare, OTHERS)
        note = f"{whole.note}, and the winner is confirmed on {others.count:,} others"
        return replace(whole, note=note, confirming=others)
    parts = part_off(samples, CONFIRMING, seed) if (samples.count or 0) >= CONFIRMED_FROM else None
    if parts is None:
        return replace(
            whole, note=f"{whole.note}; too few different ones to confirm the winner on samples apart"
        )
    choosing, confirming = parts
    if not confirms(confirming.count or 0):
        few = f"{confirming.count:,} samples apart would be too few to confirm any winner under these gates"
        return replace(whole, note=f"{whole.note}; {few}")
    note = whole.note.replace(f"{samples.count:,} of", f"{choosing.count:,} of", 1)
    return Division(
        choosing,
        whole.roles,
        f"{note}, and the winner is confirmed on {confirming.count:,} others",
        confirming,
    )


def divide(recipe: Recipe, model: onnx.ModelProto, trains: bool, most: int = MOST) -> Division:
    """The training data of the recipe, or its calibration data, divided for a search. The evaluation data is left
    for the winner.

    Raises DataError if nothing but evaluation data is named.
    """
    roles = open_roles(recipe, model)
    whole = roles.train or roles.calibration
    if whole is None:
        raise DataError(
            "settings are chosen on training or calibration data, never on evaluation data, and there is none; "
            "give --data, which is split, or --train beside --eval"
        )
    own = roles.train is not None and recipe.calibration is not None and not trains
    calibrating = 0 if own else CALIBRATION_SAMPLES
    judging, others, spare = hold_apart(whole, most, calibrating, trains, recipe.seed, roles.evaluation)
    calibration = roles.calibration if own else take(others, CALIBRATION_SAMPLES)
    seen = replace(roles, train=others if roles.train is not None else None, calibration=calibration)
    of = "training" if roles.train is not None else "calibration"
    note = f"settings are chosen on {judging.count:,} of the {of} samples"
    return Division(judging, seen, note, spare=spare)


def to_look_at(recipe: Recipe, model: onnx.ModelProto, most: int) -> Division:
    """As `divide`, but --data need not be split, and evaluation data serves where there is no other: a profile chooses
    nothing by itself.
    """
    if recipe.train is None:
        recipe = replace(recipe, train=recipe.data, data=None)
    roles = open_roles(recipe, model)
    if roles.train is not None or roles.calibration is not None:
        found = divide(recipe, model, False, most)
        return replace(found, note=found.note.replace("settings are chosen", "measured"))
    if roles.evaluation is None:
        raise DataError("sensitivity is measured on data; give --data")
    judging = keep(roles.evaluation, most)
    return Division(judging, roles, f"measured on {judging.count:,} of the evaluation samples")
