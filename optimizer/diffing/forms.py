"""Tensors that the candidate keeps in another form, such as a scale that moved into the next layer's weights.

    base        x -> Mul(1/6) -> a -> Conv(W)   -> b
    candidate   x ---------------> a' -> Conv(W/6) -> b'      a' is 6 a, and b' is b

Fed with `a`, the candidate's Conv looks wrong, and so does `a'`; both are right. So where a layer looks wrong and
what it reads is far from the base in the whole candidate too, the layer is fed from before that instead: if it is
right then, so are the tensors in between.
"""

from collections.abc import Iterable, Sequence

from onnx_lathe.optimizer.diffing.local import LocalError, Parts, local_errors
from onnx_lathe.optimizer.diffing.sides import Calls
from onnx_lathe.optimizer.ui import Ui

STEPS = (1, 2, 4, 1000)
"""Over so many tensors that look wrong the place to feed from moves back."""
RECOVERED_DB = 6.0
"""A layer that is so much nearer to the base than what it reads, in the whole candidate, makes that good."""


def without_other_forms(
    parts: Parts, errors: Sequence[LocalError], limit: float, calls: Calls, ui: Ui
) -> tuple[list[LocalError], list[str]]:
    """(the errors, those that were found to be right now of the longer part; tensors that are kept in another form,
    whose errors are not among them).

    limit: a layer looks wrong below so many dB.
    """
    known = {one.pair.name: one for one in errors}
    wrong = {name for name, one in known.items() if one.closeness < limit}
    reads = {name: [read for read in parts.needs(name) if read in known] for name in known}
    cleared: dict[str, LocalError] = {}
    between: dict[str, set[str]] = {}
    for steps in STEPS:
        pending = {}
        for name in wrong - cleared.keys():
            found = _before(known[name], known, reads, wrong, steps)
            if found and found != between.get(name):
                pending[name] = found
        between |= pending
        for name, error in _fed_from_before(parts, pending, calls, ui).items():
            if error.closeness >= limit:
                cleared[name] = error
    forms = _forms(wrong - cleared.keys(), cleared, between, reads)
    kept = [cleared.get(name, one) for name, one in known.items() if name not in forms]
    return kept, sorted(forms)


def _before(
    end: LocalError, known: dict[str, LocalError], reads: dict[str, list[str]], wrong: set[str], steps: int
) -> set[str]:
    """Tensors before the end that look wrong or are further from the base's than it is, back over so many that look
    wrong.
    """
    bound = end.accumulated.closeness - RECOVERED_DB
    found: set[str] = set()
    pending = [(read, steps) for read in reads[end.pair.name]]
    while pending:
        read, left = pending.pop()
        far = read in wrong or known[read].accumulated.closeness < bound
        if not far or known[read].pair.output or read in found:
            continue
        found.add(read)
        left -= read in wrong
        if left:
            pending += [(before, left) for before in reads[read]]
    return found


def _fed_from_before(
    parts: Parts, between: dict[str, set[str]], calls: Calls, ui: Ui
) -> dict[str, LocalError]:
    """Errors of the parts that go on over what is between. Those of disjoint places are run at once."""
    found: dict[str, LocalError] = {}
    rest = dict(between)
    while rest:
        now: dict[str, set[str]] = {}
        dropped: set[str] = set()
        for name, tensors in rest.items():
            if name not in dropped and not tensors & now.keys():
                now[name] = tensors
                dropped |= tensors
        longer = parts.without(dropped)
        found |= {one.pair.name: one for one in local_errors(longer, calls, ui, list(now))}
        rest = {name: tensors for name, tensors in rest.items() if name not in now}
    return found


def _forms(
    wrong: Iterable[str], cleared: Iterable[str], between: dict[str, set[str]], reads: dict[str, list[str]]
) -> set[str]:
    """Tensors that look wrong and lie before a layer that was cleared, if all that read them were, or are such."""
    candidates = {name for name in wrong if any(name in between[other] for other in cleared)}
    readers: dict[str, list[str]] = {}
    for name, before in reads.items():
        for read in before:
            readers.setdefault(read, []).append(name)
    good = {*cleared}

    def is_form(name: str, inside: set[str]) -> bool:
        """All ways on from it end in cleared layers, by way of tensors between."""
        for reader in readers.get(name, []):
            if reader in good:
                continue
            if reader not in inside or not is_form(reader, inside):
                return False
        return bool(readers.get(name))

    inside = {tensor for other in cleared for tensor in between[other]}
    return {name for name in candidates if is_form(name, inside)}
