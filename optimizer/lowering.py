"""A model as a target wants it, as often as the target learns something new of it."""

from collections.abc import Callable
from typing import Any

import onnx

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.runtime.targets.core.base import Target

Apply = Callable[[Pass, onnx.ModelProto], tuple[onnx.ModelProto, PassReport]]


def lowered(
    target: Target, config: Any, model: onnx.ModelProto, apply: Apply
) -> tuple[onnx.ModelProto, PassReport]:
    """The model after the target's lowering, which `apply` runs. `config`: the target's options.

    The target chooses the lowering's options, and is asked again with what they made of the model: it may see more
    there, such as a branch that lay in a branch.
    """
    if target.lowering is None:
        return model, PassReport()
    options = target.lowering_options(config, model, {})
    while True:
        made, report = apply(configure(find_lowering(target.lowering), options), model)
        known, options = options, target.lowering_options(config, made, options)
        if options == known:
            return made, report
