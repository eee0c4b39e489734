"""A network's layers one after another, each as it is once those before it were changed: what it reads on calibration
data, and what it answers in another network, without running either from its beginning each time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnx_lathe.passes.core.services import Held
from onnx_lathe.passes.extraction.submodel import Flow, flow, submodel
from onnx_lathe.protocols import Observed

HELD_BYTES = 192 << 20
"""Of tensors between two layers; where they take more, the next layers are run from further back."""


@dataclass
class Walk:
    """Of one network. `ahead`: what will still be asked for, in order: tensors that are asked for together, the first of which is
    made behind whatever changes before."""

    held: Held
    ahead: Sequence[tuple[str, ...]]

    def observe(self, model: onnx.ModelProto, place: int, changing: str = "") -> Iterator[Observed]:
        """The values of `ahead[place]`, batch by batch; what comes before it in the model is not needed any more, and
        does not change. `changing`: a tensor that will be another one at the next call, as all that follows from it.

        Raises ModelError if ONNX Runtime refuses a part of the model.
        """
        whole, names = flow(model), self.ahead[place]
        types = dict(self.held.types)
        later = self.ahead[place + 1 :]
        left = [whole.makers[name] for name in (*(one[0] for one in later), changing) if name in whole.makers]
        keep = frontier(whole, min(left)) if left else []
        keep += [name for one in later for name in one[1:] if whole.makers.get(name, min(left)) < min(left)]
        keep = list(dict.fromkeys(keep))
        outputs = [one for one in dict.fromkeys([*names, *keep]) if one in whole.makers and one not in types]
        part = submodel(model, whole, outputs, types).model if outputs else None
        yield from self.held.run(part, names, keep, HELD_BYTES)


def frontier(whole: Flow, place: int) -> list[str]:
    """What the nodes from `place` on read of those before it."""
    found: dict[str, None] = {}
    for reads in whole.reads[place:]:
        for name in reads:
            if name in whole.varying and whole.makers.get(name, place) < place:
                found[name] = None
    return list(found)
