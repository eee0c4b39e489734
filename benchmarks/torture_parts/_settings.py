"""At which setting each pass computes what it was given, and random lists of passes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

EXACT, FACTORS = 1e-5, 2e-4
"""Of an output's largest value: where weights stay, and where they are multiplied out of factors in float32. What rounding
does to the model, measured, may always be done to it.
"""


@dataclass(frozen=True)
class Setting:
    """A pass as a recipe says it. `few`: it keeps weights of at most 256 values. `data`: it needs samples."""

    text: str
    tolerance: float = EXACT
    few: bool = False
    data: bool = False

    @property
    def name(self) -> str:
        return self.text.split("(")[0]


LOSSLESS = (
    Setting("fold", 5e-4),
    Setting("equalize"),
    Setting("equalize(clip=channels)"),
    Setting("winograd"),
    Setting("prune(sparsity=0, min_size=1)"),
    Setting("prune_channels(sparsity=0)"),
    Setting("codebook(bits=8, min_size=1)", few=True),
    Setting("svd(method=weight, energy=1, always=true, multiple=1)", FACTORS),
    Setting("svd(method=spatial, energy=1, always=true, multiple=1)", FACTORS),
    Setting("svd(rank=4096, always=true)", FACTORS, data=True),
    Setting("tucker(energy=1, always=true, multiple=1)", FACTORS),
    Setting("tensor_train(tolerance=0, min_size=1, macs=1e9)", FACTORS),
    Setting("retrain(epochs=1, rate=0, batch=2)", data=True),
)
WITHOUT: Mapping[str, str] = {
    "float16": "half precision rounds every weight and value",
    "int4": "16 levels for each group of weights",
    "int8": "256 levels for weights and values",
    "prune_nm": "at least one weight of every group becomes zero",
    "refit": "fits what other passes left; it has no strength",
}
"""Passes that lose something at every setting, and what."""


def lossless(random: np.random.Generator, few: bool, data: bool) -> list[Setting]:
    """A list of one to five of these passes, mostly in an order that Lathe takes."""
    known = [one for one in LOSSLESS if (few or not one.few) and (data or not one.data)]
    drawn = [known[int(place)] for place in random.integers(0, len(known), int(random.integers(1, 6)))]
    if random.random() < 0.4:
        drawn.insert(0, LOSSLESS[0])
    if any(one.name in SPLITTING for one in drawn):  # factors may have more values than the weights had
        drawn = [one for one in drawn if not one.few]
    return _ordered(drawn, random)


def _ordered(drawn: list[Setting], random: np.random.Generator) -> list[Setting]:
    if random.random() < 0.1:
        return drawn
    return sorted(drawn, key=lambda one: ORDER.index(one.name))


SPLITTING = ("svd", "tucker", "tensor_train")
ORDER = ("fold", "equalize", "prune_channels", "svd", "tucker", "tensor_train", "prune", "prune_nm", "retrain",
         "refit", "codebook", "int4", "int8", "float16", "winograd")  # fmt: skip


def lossy(random: np.random.Generator, data: bool) -> list[Setting]:
    """A list of one to five passes at any strength, mostly in an order that Lathe takes; at most one that stores
    weights in another type.
    """

    def pick(*among: object) -> object:
        return among[int(random.integers(len(among)))]

    share = round(float(random.uniform(0.05, 0.97)), 2)
    kept = round(float(random.uniform(0.2, 0.99)), 2)
    rank = int(random.integers(1, 9))
    ranks = str(pick(f"energy={kept}", f"macs={kept}", f"rank={rank}", f"rank={rank}, always=true"))
    shapes = [
        "fold",
        f"equalize(clip={pick('keep', 'channels')})",
        f"prune(sparsity={share}, scope={pick('layer', 'global')}, min_size=1)",
        f"prune(sparsity={share}, clean=false)",
        f"prune_nm(n={pick(1, 2)}, m=4, min_size=1)",
        f"prune_channels(sparsity={share}, scope={pick('layer', 'global')})",
        f"svd(method={pick('weight', 'spatial')}, {ranks})",
        f"tucker(form={pick('tucker', 'cp')}, {ranks})",
        f"tensor_train(shrink={pick(1.5, 4, 20)}, min_size=16, cores={pick(2, 3)})",
        "winograd",
    ]
    stores = [
        f"codebook(bits={pick(1, 2, 4, 5, 8)}, min_size={pick(1, 64)}, share={pick('tensor', 'network', 'channel_group')})",
        f"int4(group={pick(16, 32)}, min_size=1, zero_points={pick('true', 'false')})",
        "float16(ranges=weights)" if not data else "float16",
    ]
    if data:
        shapes += [
            f"svd({ranks})",
            "equalize(activations=true)",
            f"prune(sparsity={share}, score=obs, min_size=1)",
            f"prune_channels(sparsity={share}, importance=obs)",
            f"retrain(epochs=1, batch={pick(2, 5)}, rate=1e-4)",
            "refit",
        ]
        stores += [
            f"int8(method={pick('minmax', 'percentile', 'entropy', 'mse')}, weight_bits={pick(8, 8, 4)})",
            f"int8(rounding={pick('hessian', 'adaptive')})",
            "int8(activations=false)",
            f"codebook(bits={pick(2, 4)}, rounding=hessian, min_size=16)",
            "int4(rounding=hessian, group=16, min_size=16)",
        ]
    drawn = [str(pick(*shapes)) for _ in range(int(random.integers(1, 5)))]
    if random.random() < 0.6:
        drawn.append(str(pick(*stores)))
    return _ordered([Setting(text) for text in drawn], random)
