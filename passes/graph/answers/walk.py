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
    """Of one network. `ahead`: tensors that will still be asked for, in order."""

    held: Held
    ahead: Sequence[str]

    def observe(self, model: onnx.ModelProto, place: int, changing: str = "") -> Iterator[Observed]:
        """The value of `ahead[place]`, batch by batch; what comes before it in the model is not needed any more, and
        does not change. `changing`: a tensor that will be another one at the next call, as all that follows from it.

        Raises ModelError if ONNX Runtime refuses a part of the model.
        """
        whole, name = flow(model), self.ahead[place]
        types = dict(self.held.types)
        left = [
            whole.makers[later] for later in (*self.ahead[place + 1 :], changing) if later in whole.makers
        ]
        keep = frontier(whole, min(left)) if left else []
        outputs = [one for one in dict.fromkeys([name, *keep]) if one in whole.makers and one not in types]
        part = submodel(model, whole, outputs, types).model if outputs else None
        yield from self.held.run(part, [name], keep, HELD_BYTES)


def frontier(whole: Flow, place: int) -> list[str]:
    """What the nodes from `place` on read of those before it."""
    found: dict[str, None] = {}
    for reads in whole.reads[place:]:
        for name in reads:
            if name in whole.varying and whole.makers.get(name, place) < place:
                found[name] = None
    return list(found)
