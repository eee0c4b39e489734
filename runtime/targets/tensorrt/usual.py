"""Sizes to build for where the model leaves them open: those of the data, or usual ones, on which it runs."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.tensorrt.dimensions import (
    Shape,
    leaves_open,
    shares_batch,
    usual_shapes,
)
from onnx_lathe.runtime.targets.tensorrt.shapes import (
    BATCH,
    Sizes,
    from_data,
    parse_batch,
    parse_shapes,
    sizes_of_names,
)

OF_BATCH = f" ({BATCH}: option batch)"
TRIED = (None, 64, 320, 512)
"""Sizes of what is open, in turn; None: what is usual for an input of its rank."""


def settled(
    model: onnx.ModelProto,
    given: Mapping[str, int | str],
    samples: Mapping[str, Shape],
    per_call: bool,
    asked: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """What the option shapes is to say beside the `given`, and a note on each.

    samples: shapes of the data by input, empty without data; per_call: each sample is a call; asked: the option batch
    is given. Raises UsageError where data of calls leaves no place for that.
    """
    why, instead = "as the data has them", ""
    parsed = parse_shapes(given)
    if not samples:
        samples = usual_samples(model, parsed)
        why, instead = "a size on which it runs, since there is no data to say it", "data or "
    found = from_data(model, given, samples, per_call, sizes_of_names(model, parsed), asked)
    if (
        asked
        and per_call
        and found
        and not any(BATCH in str(text) for text in (*given.values(), *found.values()))
    ):
        name, shape = next(iter(found.items()))
        raise UsageError(
            f"option batch: each sample of the data is one call, such as '{name}' {shape}, of which no first dimension is "
            f"open and 1: leave batch out, or say where the batch is, such as shapes={{{name}: {BATCH}x...}}"
        )
    notes = [
        f"input '{name}' has sizes that are not fixed: built for {shape}{OF_BATCH if BATCH in shape else ''}, {why}; "
        f"{instead}shapes={{{name}: MIN:OPT:MAX}} gives others"
        for name, shape in found.items()
    ]
    return found, notes


def usual_samples(model: onnx.ModelProto, given: Mapping[str, Sequence[Sizes]]) -> dict[str, Shape]:
    """Shapes of one sample by input, on which ONNX Runtime runs the model; empty if there is none among those tried,
    or the model leaves no size open.

    given: what is known already of inputs.
    """
    shared = shares_batch(model, given)
    if not shared and not leaves_open(model, given):
        return {}
    (one,) = parse_batch(1)
    named = sizes_of_names(model, given)
    known = {name: sizes[0].at(one).tuned for name, sizes in given.items()}
    try:
        session = ort.session(model)
        values = ort.random_feeds(session)
    except ModelError:
        return {}
    for apart, size in itertools.product((False, True) if shared else (False,), TRIED):
        shapes = {**usual_shapes(model, size, named, apart), **known}
        feeds = {name: np.resize(value, shapes.get(name, value.shape)) for name, value in values.items()}
        try:
            ort.run(_Silent(session), feeds)
        except ModelError:
            continue
        return {name: shape for name, shape in shapes.items() if name in feeds}
    return {}


class _Silent:
    """A session that does not print why it cannot run what is only tried."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.options = session, onnxruntime.RunOptions()
        self.options.log_severity_level = 4

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Any:
        return self.session.run(names, feeds, self.options)
