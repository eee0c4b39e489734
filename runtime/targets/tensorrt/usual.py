"""Sizes to build for where the model leaves them open and there is no data: usual ones, on which it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.tensorrt.shapes import Shape, Sizes, leaves_open, parse_batch, usual_shapes

TRIED = (None, 64, 320, 512)
"""Sizes of what is open, in turn; None: what is usual for an input of its rank."""


def usual_samples(model: onnx.ModelProto, given: Mapping[str, Sequence[Sizes]]) -> dict[str, Shape]:
    """Shapes of one sample by input, on which ONNX Runtime runs the model; empty if there is none among those tried,
    or the model leaves no size open.

    given: what is known already of inputs.
    """
    if not leaves_open(model, given):
        return {}
    (one,) = parse_batch(1)
    known = {name: sizes[0].at(one).tuned for name, sizes in given.items()}
    try:
        session = ort.session(model)
        values = ort.random_feeds(session)
    except ModelError:
        return {}
    for size in TRIED:
        shapes = {**usual_shapes(model, size), **known}
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
