"""prune_channels: operators that mix channels by their place keep them all, and say so; those that look like it
and do not let them go.
"""

import numpy as np
import pytest

from tests.support.builders import build, random
from tests.support.channels import assert_same_outputs, prune_channels, zeroed

TEXT = "(float[N, 12, 4, 4] x) => (float[N, C, H, W] y) {{ a = Conv (x, u, c) {body} y = Conv (b, v) }}"
LRN = "LRN <size = {size}, alpha = 0.5> (a)"
MIXING = {
    "LRN": (f"b = {LRN.format(size=5)}", "LRN_1 divides by neighbouring channels, which would be others"),
    "LpNormalization": (
        "b = LpNormalization <axis = 1> (a)",
        "LpNormalization has no rule for channels",
    ),
    "MeanVarianceNormalization": (
        "b = MeanVarianceNormalization <axes = [1, 2, 3]> (a)",
        "MeanVarianceNormalization has no rule for channels",
    ),
    "GroupNormalization": (
        "b = GroupNormalization <num_groups = 4> (a, s, s)",
        "GroupNormalization has no rule for channels",
    ),
    "LayerNormalization": (
        "b = LayerNormalization <axis = 1> (a, n)",
        "LayerNormalization has no rule for channels",
    ),
    "Softmax": ("b = Softmax <axis = 1> (a)", "Softmax compares its channels"),
    "LogSoftmax": ("b = LogSoftmax <axis = 1> (a)", "LogSoftmax compares its channels"),
    "Hardmax": ("b = Hardmax <axis = 1> (a)", "Hardmax has no rule for channels"),
    "CumSum": ("b = CumSum (a, one)", "CumSum has no rule for channels"),
    "TopK": ("b, i = TopK <axis = 1> (a, k)", "TopK has no rule for channels"),
    "ArgMax": (
        "i = ArgMax <axis = 1> (a) f = Cast <to = 1> (i) b = Mul (a, f)",
        "ArgMax has no rule for channels",
    ),
    "DepthToSpace": (
        "d = DepthToSpace <blocksize = 2> (a) b = SpaceToDepth <blocksize = 2> (d)",
        "DepthToSpace has no rule for channels",
    ),
    "ReverseSequence": (
        "b = ReverseSequence <batch_axis = 0, time_axis = 1> (a, l)",
        "ReverseSequence has no rule for channels",
    ),
    "Gather": ("b = Gather <axis = 1> (a, o)", "Gather has no rule for channels"),
    "a pool along channels": (
        "w = Unsqueeze (a, one) p = AveragePool <kernel_shape = [3, 1, 1], pads = [1, 0, 0, 1, 0, 0]> (w) b = Squeeze (p, one)",
        "AveragePool_2 pools over its channels",
    ),
    "a norm over channels": (
        "r = ReduceL2 <keepdims = 1> (a, one) b = Div (a, r)",
        "ReduceL2_1 adds up its channels",
    ),
}
"""What stands between two convolutions -> why the first keeps its channels."""


@pytest.mark.parametrize("name", MIXING)
def test_channels_that_are_mixed_by_their_place_stay(name: str) -> None:
    body, reason = MIXING[name]
    used = {
        "s": random(12 if "Group" in body else 1), "n": random(12, 4, 4), "one": np.array([1]), "k": np.array([12]),
        "l": np.array([12]), "o": np.arange(12)[::-1].copy(),
    }  # fmt: skip
    model = build(
        TEXT.format(body=body).replace("float[N, 12", "float[1, 12"), 21,
        u=random(12, 12, 1, 1), c=random(12), v=random(5, 12, 1, 1),
        **{key: value for key, value in used.items() if f", {key}" in body},
    )  # fmt: skip
    _, report = prune_channels(model, sparsity=0.5)
    assert report.edits == []
    assert (report.skips[0].node, report.skips[0].reason) == ("Conv_0", f"its channels stay: {reason}")


@pytest.mark.parametrize(
    "body",
    [
        f"b = {LRN.format(size=1)}",
        "b = InstanceNormalization (a, s, t)",
        "b = Softmax <axis = 2> (a)",
        "b = LpPool <kernel_shape = [1, 1]> (a)",
    ],
)
def test_what_treats_each_channel_alone_lets_them_go(body: str) -> None:
    parameters = {"s": random(12), "t": np.zeros(12, np.float32)} if "(a, s" in body else {}
    model = build(
        TEXT.format(body=body), 21, u=random(12, 12, 1, 1), c=random(12), v=random(5, 12, 1, 1), **parameters
    )
    after, report = prune_channels(model, sparsity=0.5)
    assert report.metrics == {"channels_removed": 0.5}
    assert_same_outputs(zeroed(model, 0.5), after, 1e-5, 2)
