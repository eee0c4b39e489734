"""The Python API behind `onnx_lathe`: what the commands do, returning values; nothing here prints or exits.

Every function raises LatheError (UsageError, ModelError, DataError, PassError, TargetError) with one line
that names the file, node or option and says what to do.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import arguments, artifacts, observing, opening, pipeline, reporting
from onnx_lathe.optimizer import check as checking
from onnx_lathe.optimizer.build import configured_targets, placement
from onnx_lathe.optimizer.claim import claimed
from onnx_lathe.optimizer.fixed_inputs import checked_fixed
from onnx_lathe.optimizer.measuring import measured_exactly
from onnx_lathe.optimizer.observing import Observation
from onnx_lathe.optimizer.recipe import Call, Recipe, check_order, load_recipe, override, parse_calls
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.run import Request
from onnx_lathe.optimizer.services import Services, check_needs, check_training, open_roles, warnings
from onnx_lathe.optimizer.sizes import parse_bytes
from onnx_lathe.optimizer.step import apply_checked
from onnx_lathe.optimizer.ui import Calling
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import checked, configure
from onnx_lathe.passes.core.registry import all_passes, find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.loading.order import sort_nodes
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.data import DataSpec
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.reading import OLDEST
from onnx_lathe.runtime.pack import BEST, LIMIT_BYTES
from onnx_lathe.runtime.pack import files as packed_files
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core import registry as target_registry
from onnx_lathe.runtime.targets.core.base import Target
from onnx_lathe.runtime.threads import limited

if TYPE_CHECKING:
    import onnxruntime

    from onnx_lathe.runtime.torch_bridge import GraphModule

Model = onnx.ModelProto | str | Path
"""A model in memory, or the path of an ONNX or packed file."""

Passes = str | Pass | Sequence[str | Pass]
""" "fold, prune(sparsity=0.9)", a configured pass, or a list of both."""

Progress = Callable[[str], None]


def rewrite(
    model: Model,
    passes: Passes,
    *,
    data: DataSpec | None = None,
    train: DataSpec | None = None,
    calibration: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    targets: str | Sequence[str] = "",
    seed: int = 0,
    keep_metadata: bool = False,
    drop_optional_inputs: bool = False,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
    on_report: Callable[[Pass, PassReport], None] = lambda instance, report: None,
) -> onnx.ModelProto:
    """The model after the passes, below 2 GB; `model` itself stays as it is. Nothing is written to disk.

    data: trains and calibrates, unless `train` and `calibration` name other data for that; it is needed by
    passes that do. classes: a file with the names of class folders, one a line, in the order of their
    indices. fix_inputs: values of inputs that become constants, such as {"sr": 16000}. targets: for whom `int8`
    places Q/DQ pairs, such as "ort". on_report: called after each pass with what it says of its edits, skips and warnings. progress: what a run prints, warnings included.
    """
    instances = _passes(passes)
    recipe = _asked(
        Recipe(),
        train=data if train is None else train,
        calibration=calibration,
        preprocess=preprocess,
        classes=classes,
        seed=seed,
        fix_inputs=fix_inputs,
    )
    opened = _opened(model, Wishes(keep_metadata, drop_optional_inputs, recipe.fix_inputs))
    given = opened.model
    roles = open_roles(recipe, given)
    check_needs(instances, roles, recipe)
    check_training(instances, roles, recipe, given)
    for warning in (*model_file.warnings(given), *warnings(instances, roles)):
        progress(f"warning: {warning}")
    for note in opened.notes:
        progress(note)
    source = given
    place = placement(configured_targets(_calls(targets))) if targets else CANONICAL
    looks = any("original" in instance.needs for instance in instances)
    services = Services(recipe, roles, given, None, progress, given if looks else None)
    for number, instance in enumerate(instances, 1):
        context = services.context(f"{number}/{len(instances)} {instance.name}", None, place)
        source, report = apply_checked(instance, source, context, roles.sample)
        on_report(instance, report)
    if measured_exactly(source):
        progress(f"warning: {ort.SATURATES}")
    return _copied(source) if source is model else source


def optimize(
    model: Model,
    passes: Passes | None = None,
    *,
    recipe: str | Path | None = None,
    data: DataSpec | None = None,
    train: DataSpec | None = None,
    calibration: DataSpec | None = None,
    eval: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    gates: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    out: str | Path = "build",
    retrain: str | None = None,
    launch: str | None = None,
    parallel: str | None = None,
    memory: str | int | None = None,
    seed: int | None = None,
    resume: bool = False,
    force: bool = False,
    threads: int = 0,
    latency: bool = True,
    html: bool = True,
    keep_metadata: bool = False,
    drop_optional_inputs: bool = False,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> RunRecord:
    """Compiles the model as the command `optimize` does, and returns its record, which is in `out` too.

    fix_inputs: values of inputs that become constants, such as {"sr": 16000}.
    Arguments are the options of the command; `recipe` is a TOML file that they override. A gate that fails
    raises nothing: `record.exit_code` is 3 then, and `record.outcome` "gate failed".
    """
    asked = load_recipe(arguments.path(recipe, "recipe")) if recipe is not None else Recipe()
    if passes is None and recipe is None:
        raise UsageError('nothing to do; name passes, such as "fold, int8", or a recipe')
    asked = _asked(
        asked, data=data, train=train, calibration=calibration, eval=eval, preprocess=preprocess, classes=classes,
        retrain=retrain, launch=launch, parallel=parallel, seed=seed, fix_inputs=fix_inputs,
        memory=parse_bytes(memory, "memory") if isinstance(memory, str) else memory,
        gates=None if gates is None else arguments.texts(gates, "gates"),
        targets=None if targets is None else _calls(targets),
    )  # fmt: skip
    if isinstance(passes, str):
        asked, passes = override(asked, steps=parse_calls(passes, "passes")), None
    place, steps = arguments.path(out, "out"), None if passes is None else _passes(passes)
    wishes = Wishes(keep_metadata, drop_optional_inputs)
    with _file(model) as path, limited(threads):
        name = "model in memory" if isinstance(model, onnx.ModelProto) else ""
        request = Request(path, asked, place, resume, latency, steps, wishes, (), name, force, html)
        ui = Calling(progress)
        with claimed(place, ui.note) as claim:
            record = pipeline.run(request, ui, claim)
            reporting.finish(record, request, ui)
    return record


def build(
    model: Model,
    targets: str | Sequence[str],
    out: str | Path = "build/targets",
    *,
    force: bool = False,
    keep_metadata: bool = False,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> RunRecord:
    """Builds a finished model for targets such as "ort, pack", as `optimize build` does."""
    return optimize(
        model,
        "",
        targets=targets,
        out=out,
        force=force,
        latency=False,
        keep_metadata=keep_metadata,
        fix_inputs=fix_inputs,
        progress=progress,
    )


def run(
    model: str | Path,
    data: DataSpec | None = None,
    *,
    against: str | Path | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    threads: int = 1,
    save: str | Path | None = None,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> Observation:
    """What a finished model file computes of the data, or of random values without: outputs, metrics and latency.

    model: an ONNX file, packed or not, an .ort file, a .tflite, ncnn's .param with its .bin and .json beside it, QNN's
    model_ctx.onnx with its .bin and .json, or a TensorRT .engine with its .engine.json. against: another
    one, such as the original, which it is compared with and timed in turn with. save: an .npz file for all outputs.
    fix_inputs: values that inputs of either are always fed with, such as {"sr": 16000}.
    """
    recipe = _asked(Recipe(), eval=data, preprocess=preprocess, classes=classes, fix_inputs=fix_inputs)
    paths = [
        None if one is None else arguments.path(one, what)
        for one, what in ((against, "against"), (save, "save"))
    ]
    with limited(threads):
        return observing.observe(arguments.path(model, "model"), recipe, Calling(progress), *paths)


def check(
    model: str | Path, targets: str | Sequence[str], *, fix_inputs: Mapping[str, Any] | None = None
) -> list[checking.Check]:
    """Which nodes each target refuses, which layers really run in INT8 on it, and why the others do not.

    fix_inputs: values of inputs that are looked at as constants, such as {"sr": 16000}.
    """
    fixed = checked_fixed(fix_inputs or {}, "fix_inputs")
    return checking.check(arguments.path(model, "model"), _calls(targets), fixed)


def pack(
    file: str | Path,
    out: str | Path | None = None,
    effort: str = BEST,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> packed_files.Sizes:
    """Compresses a model file without loss; `out` is the file with the ending .lathe if it is not named.

    effort: "best" for the smallest file, "fast" for one that is some per cent larger, ten times sooner. progress:
    hears of the bytes that are done, and of all.
    """
    source = arguments.path(file, "file")
    packed_files.require(source, packed=False)
    target = artifacts.beside(source, out, packed_files.SUFFIX)
    return packed_files.pack_file(source, target, effort, progress)


def unpack(
    file: str | Path, out: str | Path | None = None, limit_bytes: int = LIMIT_BYTES
) -> packed_files.Sizes:
    """Restores the model file that was packed; `out` is the file with the ending .onnx if it is not named.

    limit_bytes: a file that says it is larger is refused.
    """
    source = arguments.path(file, "file")
    packed_files.require(source, packed=True)
    return packed_files.unpack_file(source, artifacts.beside(source, out, ".onnx"), limit_bytes)


def open(model: Model, threads: int = 0) -> "onnxruntime.InferenceSession":
    """An ONNX Runtime session of a model in memory or of any file that the commands take, packed ones too.

    threads: 0 means one per core. On x86-64 processors without VNNI, whose sums of INT8 saturate in a plain
    session, it computes them exactly, which is slower. It is not tried in a process of its own first: what
    `optimize` and `rewrite` gave has been.
    """
    source = model if isinstance(model, onnx.ModelProto) else arguments.path(model, "model")
    return ort.session(source, threads, guarded=False)


def to_torch(model: Model) -> "GraphModule":
    """The graph as a torch.nn.Module, whose parameters are the model's initializers. Needs PyTorch."""
    from onnx_lathe.runtime.torch_bridge import GraphModule

    return GraphModule(_loaded(model))


def from_torch(module: "GraphModule", model: Model) -> onnx.ModelProto:
    """A copy of `model` with the values that the module made of it has now."""
    made = _copied(_loaded(model))
    values = module.values()
    for tensor in made.graph.initializer:
        if tensor.name in values:
            value = values.pop(tensor.name)
            if list(value.shape) != list(tensor.dims):
                raise UsageError(f"'{tensor.name}' is {list(value.shape)} in the module, not as in the model")
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    if values:
        raise UsageError(f"the module is of another model: '{min(values)}' is no initializer of this one")
    return made


def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name, plug-ins included."""
    return all_passes()


def targets() -> Mapping[str, type[Target]]:
    """Every target by name, plug-ins included."""
    return target_registry.targets()


def _passes(given: Passes) -> list[Pass]:
    """Configured instances, in an order that makes sense."""
    parts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    found: list[Pass] = []
    for part in parts:
        if isinstance(part, Pass):
            found.append(checked(part))
        elif isinstance(part, str):
            found += [configure(find(call.name), call.options) for call in parse_calls(part, "passes")]
        else:
            hint = f"; write {part.__name__}()" if isinstance(part, type) else ""
            raise UsageError(f"passes are texts or passes, not {type(part).__name__}{hint}")
    check_order(found)
    return found


def _calls(given: str | Sequence[str]) -> tuple[Call, ...]:
    return tuple(call for text in arguments.texts(given, "targets") for call in parse_calls(text, "targets"))


def _asked(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with every change that is not None. Raises UsageError for a text or number that is none."""
    for name in ("preprocess", "classes", "retrain", "launch", "parallel"):
        if not isinstance(changes.get(name), str | None):
            raise UsageError(f"{name} takes a text, not {type(changes[name]).__name__}")
    for name in ("seed", "memory"):
        if type(changes.get(name)) not in (int, type(None)):
            raise UsageError(f"{name} takes a whole number, not {changes[name]!r}")
    return override(recipe, **changes)


def _opened(model: Model, wishes: Wishes) -> opening.Opened:
    """The model as passes take it, compared with the one given where it was rewritten."""
    if isinstance(model, onnx.ModelProto):
        opened = opening.open_given(model, wishes)
    else:
        opened = opening.open_file(arguments.path(model, "model"), wishes)
    if opened.rewritten:
        opening.compare_on_random(ort.session(model), opened)
    return opened


def _loaded(model: Model) -> onnx.ModelProto:
    return _opened(model, Wishes(keep_metadata=True)).model


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@contextmanager
def _file(model: Model) -> Iterator[Path]:
    """Where the model is on disk; one in memory is written to a temporary file."""
    if isinstance(model, onnx.ModelProto):
        with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
            path = Path(folder) / "model.onnx"
            model_file.save(model_file.checked(model, OLDEST, sort_nodes), path)
            yield path
    else:
        yield arguments.path(model, "model")
