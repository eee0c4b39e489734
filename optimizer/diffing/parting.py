"""Where two models part: at the first tensor whose error reaches an output, not at one that is made good again."""

from collections.abc import Mapping, Sequence

from onnx_lathe.passes.extraction.submodel import Flow


def parting(
    closeness: Mapping[str, float], outputs: Sequence[str], flow: Flow, at: float
) -> tuple[str | None, list[str]]:
    """(the first tensor below `at` dB from which tensors below it lead to an output that is below it, None if there
    is none; other tensors below `at`, which what reads them makes good, such as a scale that a later weight has).

    closeness: of the compared tensors, in the order of execution. flow: of the candidate.
    """
    below = {name for name, value in closeness.items() if value < at}
    reached = {name for name in outputs if name in below}
    pending = [name for name in reached if name in flow.makers]
    while pending:
        _, before = flow.needed([pending.pop()], closeness)
        new = [name for name in before if name in below and name not in reached]
        reached.update(new)
        pending += [name for name in new if name in flow.makers]
    first = next((name for name in closeness if name in reached), None)
    return first, [name for name in closeness if name in below and name not in reached]
