"""Every operator that the writer of LiteRT knows, on the cases of the bridge, against ONNX Runtime."""

from functools import cache

import pytest

from onnx_lathe.runtime.targets.litert.convert import Conversion
from onnx_lathe.runtime.targets.litert.registry import find
from tests.support.litert_operators import TOLERANCE, compare, converted, kernels_for, packed, run
from tests.support.operator_case import Case, build, expected
from tests.support.operator_cases import CASES

pytest.importorskip("ai_edge_litert")

ELSEWHERE = ("ConstantOfShape", "Range", "QuantizeLinear", "DequantizeLinear")
"""In these cases the sizes of the result are an input, or the scales that of an axis."""
WRITTEN = [case for case in CASES if find("", case.op) is not None and case.op not in ELSEWHERE]
REFUSED = {
    "Attention": ("softcap", "its mask is computed"),
    "AveragePool": ("dilated", "spatial dimensions"),
    "BitwiseXor": ("INT64",),
    "Conv": ("spatial dimensions",),
    "ConvTranspose": ("spatial dimensions",),
    "Div": ("64 bits",),
    "GRU": ("leave out sequence_lens",),
    "Hardmax": ("several axes together",),
    "IsInf": ("neither infinity",),
    "LSTM": ("leave out sequence_lens",),
    "MaxPool": ("dilated", "spatial dimensions", "where its maxima were"),
    "RNN": ("leave out sequence_lens",),
    "ReduceMean": ("mean of integers",),
    "Resize": ("values for one", "aspect ratio", "extrapolation_value", "interpolates integers"),
    "ScatterElements": ("its reduction is",),
    "ScatterND": ("its reduction is",),
}
"""What the writer says of the cases that it does not write."""
MOST_REFUSED = 47


@cache
def written(number: int) -> Conversion:
    case = WRITTEN[number]
    return converted(build(case), {f"x{index}": value.shape for index, value in enumerate(case.inputs)})


@pytest.mark.parametrize("number", range(len(WRITTEN)), ids=[str(case) for case in WRITTEN])
def test_operator(number: int) -> None:
    case: Case = WRITTEN[number]
    found = written(number)
    if found.refused:
        (reason,) = {reason for _, _, reason in found.refused}
        assert any(part in reason for part in REFUSED.get(case.op, ())), reason
        return
    model = build(case)
    wanted = dict(zip([one.name for one in model.graph.output], expected(case, model), strict=True))
    feeds = {f"x{index}": value for index, value in enumerate(case.inputs)}
    blob = packed(found)
    for kernels in kernels_for(one.code for one in found.network.operators):
        compare(run(blob, feeds, kernels), wanted, TOLERANCE, kernels)


def test_no_more_is_refused_than_before() -> None:
    assert sum(bool(written(number).refused) for number in range(len(WRITTEN))) <= MOST_REFUSED
