"""Data for a model, in batches that are ready to feed.

    file.npz              arrays named as the model's inputs, and `labels` (int [N]) if there are any
    file.npz:train        the arrays train/<input> and train/labels
    folder                pictures; in class folders, whose places are the labels (classes.py), or flat and then without labels
    loader.py:function    function() yields batches: {input: array}, an array for a model with one input, or (either, labels)

Labels are numbers of classes; metrics of boxes, pixels or texts ask for labels of their own form (truth.py).

The path of an existing file wins over the part behind a colon, and `C:/data.npz` is a path.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.arrays import open_arrays
from onnx_lathe.runtime.data.classes import ClassNames, read_classes
from onnx_lathe.runtime.data.functions import open_function
from onnx_lathe.runtime.data.images import ImageSource, open_images
from onnx_lathe.runtime.data.memory import DataSpec, named, open_memory
from onnx_lathe.runtime.data.preprocess import Preprocess, is_float, parse
from onnx_lathe.runtime.data.source import Batch, DataSource, Split, overlap, split, take
from onnx_lathe.runtime.data.truth import Truth
from onnx_lathe.runtime.files.signature import InputSpec, model_classes, model_inputs

__all__ = [
    "Batch",
    "ClassNames",
    "DataSource",
    "DataSpec",
    "InputSpec",
    "Split",
    "Truth",
    "model_classes",
    "model_inputs",
    "named",
    "open_source",
    "overlap",
    "read_classes",
    "split",
    "take",
]


def open_source(
    spec: DataSpec,
    inputs: Sequence[InputSpec],
    preprocess: str | None = None,
    classes: int | None = None,
    class_names: ClassNames | None = None,
    truth: Truth = Truth.CLASSES,
    fixed: Collection[str] = (),
) -> DataSource:
    """Opens data for a model with these inputs; `preprocess` is the --preprocess text, `classes` bounds the
    labels, `class_names` gives class folders their indices. `truth` says what labels may be. What the data has for the
    inputs `fixed`, which are constants of the model now, is not read.

    Everything that can be known is checked now. Raises DataError (UsageError for `preprocess`) naming file,
    array and what is wanted.
    """
    options = parse(preprocess)
    if not inputs:
        raise DataError(f"{named(spec)}: the model has no inputs that data could be fed to")
    if options.scales and not any(is_float(one.dtype) for one in inputs):
        raise DataError(
            f"--preprocess scales pixels for a float input, but the model takes {inputs[0].dtype}; leave scale, mean and std out"
        )
    source = _open(spec, inputs, options, classes, class_names, truth, frozenset(fixed))
    if options.frames and not isinstance(source, ImageSource):
        unread = (
            f"{named(spec)}: resize and crop of --preprocess are for folders of pictures and do nothing here"
        )
        source.warnings = (*source.warnings, unread)
    return source


def _open(
    spec: DataSpec,
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    class_names: ClassNames | None,
    truth: Truth,
    fixed: frozenset[str],
) -> DataSource:
    if isinstance(spec, Mapping) or callable(spec):
        return open_memory(spec, inputs, options, classes, truth, fixed)
    if not isinstance(spec, str | Path):
        example = f'{{"{inputs[0].name}": array}}'
        raise DataError(
            f"data is a text, arrays by name such as {example}, or a function, not {type(spec).__name__}"
        )
    path, part = _locate(str(spec))
    if path.is_dir() and part is None:
        return open_images(path, inputs, options, classes, class_names)
    if path.suffix.lower() == ".npz":
        return open_arrays(path, part, inputs, options, classes, truth, fixed)
    if path.suffix.lower() == ".py":
        return open_function(path, part, inputs, options, classes, truth, fixed)
    if not path.exists():
        raise DataError(f"{spec}: no such file or folder")
    raise DataError(f"{spec}: data is a .npz file, a folder of pictures, or file.py:function")


def _locate(spec: str) -> tuple[Path, str | None]:
    """(path, what stands behind the colon). A drive letter's colon is part of the path."""
    whole = Path(spec).expanduser()
    head, colon, tail = spec.rpartition(":")
    if not colon or whole.exists() or (re.fullmatch(r"[A-Za-z]", head) and tail[:1] in ("\\", "/")):
        return whole, None
    return Path(head).expanduser(), tail
