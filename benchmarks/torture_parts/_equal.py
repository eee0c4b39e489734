"""Whether two models compute the same, more strictly than the contract that runs with every pass."""

from collections.abc import Callable, Mapping

import numpy as np

from onnx_lathe.passes.core.contract import ROUNDING_MARGIN

Outputs = Mapping[str, np.ndarray]


def difference(
    before: Outputs, after: Outputs, tolerance: float, rounding: Callable[[], Mapping[str, float]]
) -> str:
    """What is other, empty if nothing is. Names, types, shapes, and where values are NaN or infinite, are equal; integers
    and texts too, and floats within `tolerance` of the largest, but for what `rounding` says that rounding alone does:
    ROUNDING_MARGIN times as much.
    """
    if before.keys() != after.keys():
        return f"outputs {sorted(before)} became {sorted(after)}"
    for name, expected in before.items():
        found = after[name]
        if expected.dtype != found.dtype or expected.shape != found.shape:
            was, now = f"{expected.dtype} {list(expected.shape)}", f"{found.dtype} {list(found.shape)}"
            return f"output '{name}': {was} became {now}"
        if said := _values(name, expected, found, tolerance, rounding):
            return said
    return ""


def _values(
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: float,
    rounding: Callable[[], Mapping[str, float]],
) -> str:
    if expected.dtype.kind not in "fc":
        share = float(np.mean(expected != found)) if expected.size else 0.0
        if share and share > ROUNDING_MARGIN * rounding().get(name, 0.0):
            return f"output '{name}': {share:.2%} of its values are others"
        return ""
    finite = np.isfinite(expected)
    special = (np.isnan, np.isposinf, np.isneginf) if expected.dtype.kind == "f" else (np.isnan,)
    if not all(np.array_equal(kind(expected), kind(found)) for kind in special):
        return f"output '{name}': it is NaN or infinite elsewhere"
    if not finite.any():
        return ""
    wide = [
        one[finite].astype(np.complex128 if one.dtype.kind == "c" else np.float64)
        for one in (expected, found)
    ]
    largest = max(float(np.abs(wide[0]).max()), 1e-30)
    error = float(np.abs(wide[0] - wide[1]).max())
    if error <= tolerance * largest or error <= ROUNDING_MARGIN * rounding().get(name, 0.0):
        return ""
    return f"output '{name}': by {error / largest:.2g} of its largest value, allowed is {tolerance:.2g}"
