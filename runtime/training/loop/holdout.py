"""Training data that is not trained on: it chooses the epoch whose weights are kept, so that evaluation
data need not.
"""

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import IndexedSource, Subset


def held_out(source: DataSource, share: float, seed: int) -> tuple[DataSource, DataSource]:
    """(the rest, that share of the samples), at random; equal samples are on one side.

    Raises DataError for data without numbered samples, or too few of them.
    """
    if not isinstance(source, IndexedSource):
        raise DataError(f"{source.description}: cannot be divided for holdout; leave holdout= out")
    order = np.random.default_rng(seed).permutation(source.count)
    identities = source.identities(order)
    first = identities[: round(share * source.count)]
    chosen = np.isin(identities, first)
    if not 0 < chosen.sum() < source.count:
        raise DataError(
            f"{source.description}: too few different samples for holdout={share:g}; leave it out"
        )
    return Subset(source, order[~chosen]), Subset(source, order[chosen])
