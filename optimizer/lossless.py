"""What becomes of a lossless pass whose result computes something else: it is done again without the node
that did it, or left out; the report says which.
"""

from collections.abc import Callable, Sequence

import onnx

from onnx_lathe.errors import ContractError
from onnx_lathe.passes.core.contract import OutputMovedError
from onnx_lathe.passes.core.report import PassReport

Applied = tuple[onnx.ModelProto, PassReport]
MOST_TRIALS = 16


def retreat(
    found: OutputMovedError,
    edited: Sequence[str],
    apply: Callable[[frozenset[str]], Applied],
    holds: Callable[[onnx.ModelProto], bool],
) -> Applied | None:
    """The pass without the one node that moved an output; None, if there is no such node.

    edited: nodes that the pass changed, once each; apply: the pass, sparing these nodes; holds: whether
    the outputs are right.
    """
    culprit = _culprit(edited, lambda spared: holds(apply(spared)[0]))
    if culprit is None:
        return None
    after, report = apply(frozenset([culprit]))
    report.skip(culprit, f"left as it was: {found}")
    report.warnings.append(f"node '{culprit}' was left as it was: {found}")
    return after, report


def left_out(name: str, found: OutputMovedError) -> PassReport:
    """The report of a pass that was left out."""
    report = PassReport()
    report.skip(name, f"left out: {found}")
    report.warnings.append(f"the pass was left out: {found}")
    return report


def _culprit(edited: Sequence[str], holds_without: Callable[[frozenset[str]], bool]) -> str | None:
    """The one node without whose change the outputs are right, by bisection; None if there is none."""
    suspects = list(edited)
    for _ in range(MOST_TRIALS):
        if len(suspects) < 2:
            break
        half = suspects[: len(suspects) // 2]
        try:
            suspects = half if holds_without(frozenset(half)) else suspects[len(half) :]
        except ContractError:
            return None
    try:
        return suspects[0] if suspects and holds_without(frozenset(suspects)) else None
    except ContractError:
        return None
