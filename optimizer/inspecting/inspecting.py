"""`onnx_lathe.inspect`, and what the command does."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.macs import OpenShape
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.inspecting.analysis import Analysis, Question
from onnx_lathe.optimizer.inspecting.rows import Inspection
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.data import DataSpec

UNTOUCHED = Wishes(keep_metadata=True)


def inspect(
    model: onnx.ModelProto | str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    weights: bool = True,
    time: bool = False,
    data: DataSpec | None = None,
    preprocess: str | None = None,
    training: bool = False,
    optimizer: str = "adam",
    everything: bool = False,
) -> Inspection:
    """(a row per layer, what the whole model weighs); rows of nodes without weights or MACs, and of the model's inputs,
    too, if `everything`.

    shapes: sizes of inputs that the model leaves open, by name. batch: samples that all figures are of. weights: False
    leaves weights that are in another file unread, so that their zeros are not known. time: measures each layer in ONNX
    Runtime, on the first samples of `data` or on random values. training: memory that a step of training holds, with the
    optimizer "sgd", "momentum" or "adam".

    Raises UsageError for sizes that the model does not take, ModelError or DataError as loading does.
    """
    question = Question({} if shapes is None else shapes, batch, weights, training, optimizer)
    timed = Recipe(eval=data, preprocess=preprocess) if time else None
    if isinstance(model, onnx.ModelProto):
        found = _inspected(opening.open_given(model, UNTOUCHED).model, question, timed)
    elif not isinstance(model, str | Path):
        raise UsageError(f"model is a path or a model, not {type(model).__name__}")
    else:
        found = inspect_file(Path(model), question, timed)
    return found if everything else found._replace(layers=[row for row in found.layers if row.counts])


def inspect_file(path: Path, question: Question, timed: Recipe | None = None) -> Inspection:
    """`timed`: the data that the model is timed on. Weights in another file are read only where the question, or a
    measurement, needs them.
    """
    data = question.weights or timed is not None
    return _inspected(opening.open_file(path, UNTOUCHED, data).model, question, timed)


def _inspected(model: onnx.ModelProto, question: Question, timed: Recipe | None) -> Inspection:
    analysis = Analysis(model, question)
    found = analysis.inspection()
    if timed is None:
        return found
    from onnx_lathe.optimizer.inspecting.times import Sample, measure, with_times
    from onnx_lathe.optimizer.services import open_fed
    from onnx_lathe.runtime.files.signature import model_classes, model_inputs

    source = None
    if timed.eval is not None:
        source = open_fed(timed, model_inputs(model), model_classes(model)).evaluation
    if analysis.samples > 1:
        raise UsageError("the model takes one sample at a time, and so it is timed; leave --batch out")
    measured = measure(model, Sample(source, analysis.input_shapes, analysis.batch))
    if any(measured.sizes.get(name, shape) != shape for name, shape in analysis.input_shapes.items()):
        if question.shapes:
            _refuse(analysis.input_shapes, measured.sizes)
        analysis = Analysis(model, replace(question, shapes=measured.sizes, batch=None))
        found = analysis.inspection()
    return with_times(found, analysis.main_nodes, measured)


def _refuse(asked: Mapping[str, OpenShape], measured: Mapping[str, Sequence[int]]) -> None:
    """Raises UsageError for sizes that the data has not."""
    for name, shape in asked.items():
        sizes = measured.get(name, shape)
        if any(isinstance(one, int) and one != two for one, two in zip(shape, sizes, strict=True)):
            found = "x".join(map(str, sizes))
            raise UsageError(
                f"--shape: input '{name}' is {'x'.join(map(str, shape))}, and what it is timed on {found}; "
                "leave --shape out, or give --data of its sizes"
            )
