"""Values of tensors on the calibration samples, held between runs of parts of a network.

A pass that changes layers one after another, each by what it reads once those before it are changed, would run the
network from its beginning for each of them. Here a part begins with what the last one left.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.protocols import Observed
from onnx_lathe.runtime.running import ort


class HeldValues:
    """Implements Held of passes/core/services.py. `feeds`: the samples (values by input, samples, rows)."""

    def __init__(self, feeds: Sequence[tuple[dict[str, np.ndarray], int, int]]) -> None:
        self._feeds = feeds
        self._held: list[dict[str, np.ndarray]] = [{} for _ in feeds]
        self.samples = sum(count for _, count, _ in feeds)

    @property
    def types(self) -> Mapping[str, np.dtype]:
        return {name: value.dtype for name, value in self._held[0].items()} if self._held else {}

    def run(
        self,
        part: onnx.ModelProto | None,
        show: Sequence[str],
        keep: Collection[str] = (),
        most_bytes: int = 0,
    ) -> Iterator[Observed]:
        """Runs the part batch by batch, fed with what is held and with the samples, and gives `show`; when all batches
        are through, what was held gives way to `keep`, if that takes at most `most_bytes`. `show` and `keep` are
        outputs of the part, its inputs, or held. No part: nothing is computed.

        Raises ModelError if ONNX Runtime refuses the part.
        """
        session = None if part is None else ort.session(part, integer=False)
        inputs = [] if session is None else [value.name for value in session.get_inputs()]
        kept: list[dict[str, np.ndarray]] = []
        size, fits = 0, bool(keep)
        for (feeds, count, rows), held in zip(self._feeds, self._held, strict=True):
            known = feeds | held
            if missing := [name for name in inputs if name not in known]:
                raise ModelError(f"no value of '{missing[0]}' is held for the part of the network")
            values = known
            if session is not None:
                values = known | ort.run(session, {name: known[name] for name in inputs})
            # a sequence, or an optional value that is missing, is no array
            fits = fits and all(name in values for name in keep)
            if fits:
                kept.append({name: values[name] for name in keep})
                size += sum(value.nbytes for value in kept[-1].values())
                fits = size <= most_bytes
            if not fits:
                kept.clear()
            yield Observed({name: values[name] for name in show}, count, rows)
        if fits:
            self._held = kept
