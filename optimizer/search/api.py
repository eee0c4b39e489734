"""`onnx_lathe.search`, `sensitivity` and `auto`: what the commands do, returning values."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Recipe, load_recipe, override, parse_calls
from onnx_lathe.optimizer.search import profiling
from onnx_lathe.optimizer.search.automatic import plan
from onnx_lathe.optimizer.search.clock import parse_budget
from onnx_lathe.optimizer.search.record import SearchRecord
from onnx_lathe.optimizer.search.request import SearchRequest
from onnx_lathe.optimizer.search.search import search as run_search
from onnx_lathe.optimizer.search.sensitivity import Profile
from onnx_lathe.optimizer.ui import Calling
from onnx_lathe.passes.loading.order import sort_nodes
from onnx_lathe.runtime.data import DataSpec
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.reading import OLDEST

Model = onnx.ModelProto | str | Path
Progress = Callable[[str], None]


def sensitivity(
    model: Model,
    step: str,
    *,
    data: DataSpec | None = None,
    train: DataSpec | None = None,
    calibration: DataSpec | None = None,
    eval: DataSpec | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    strengths: Sequence[float] = (),
    subset: int = profiling.SUBSET,
    cache: str | Path | None = None,
    seed: int = 0,
    fix_inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> Profile:
    """What the pass `step`, such as "prune" or "svd(method=weight)", costs in each layer alone, by its strength.

    fix_inputs: values of inputs that become constants, such as {"sr": 16000}.
    """
    calls = parse_calls(step, "step")
    if len(calls) != 1:
        raise UsageError(f"step takes one pass, not '{step}'")
    recipe = override(
        Recipe(seed=seed), data=data, train=train, calibration=calibration, eval=eval, preprocess=preprocess,
        classes=classes, fix_inputs=fix_inputs,
    )  # fmt: skip
    with _file(model) as (path, name):
        place = None if cache is None else Path(cache)
        asked = profiling.Asked(path, calls[0], recipe, tuple(strengths), subset, place, name)
        return profiling.run(asked, Calling(progress))


def search(
    model: Model,
    passes: str | None,
    gates: str | Sequence[str],
    *,
    recipe: str | Path | None = None,
    minimize: str = "packed",
    space: str | Sequence[str] = (),
    budget: str = "10m",
    trials: int = 0,
    jobs: int = 1,
    storage: str = "",
    out: str | Path = "build/search",
    resume: bool = False,
    force: bool = False,
    subset: int = 1000,
    validation: int = 5000,
    margin: float = 1.0,
    threads: int = 0,
    progress: Progress = lambda text: None,
    **asked: Any,
) -> SearchRecord:
    """The settings of the passes, per layer, that make the model smallest or fastest under the gates.

    space: what --search says. asked: data, train, calibration, eval, preprocess, classes, targets, retrain, seed and fix_inputs,
    as of `optimize`. A gate that fails raises nothing: `record.exit_code` is 3 then. Raises LatheError as `optimize`.
    """
    given = load_recipe(Path(recipe)) if recipe is not None else Recipe()
    changed = _recipe(given, gates, asked)
    if passes is not None:
        changed = override(changed, steps=parse_calls(passes, "passes"))
    entries = (space,) if isinstance(space, str) else tuple(space)
    return _run(
        model, changed, minimize, entries, progress, budget=budget, trials=trials, jobs=jobs, storage=storage, out=out,
        resume=resume, force=force, subset=subset, validation=validation, margin=margin, threads=threads,
    )  # fmt: skip


def auto(
    model: Model,
    target: str,
    gates: str | Sequence[str],
    *,
    minimize: str | None = None,
    budget: str = "10m",
    out: str | Path = "build/search",
    progress: Progress = lambda text: None,
    **asked: Any,
) -> SearchRecord:
    """`search` with the passes that suit the target, and the target built.

    minimize: "macs" or "latency", by thinner layers; None for the size that suits the target. asked: as of `search`.
    """
    options = {name: asked.pop(name) for name in list(asked) if name in _OPTIONS}
    chosen = plan(_recipe(Recipe(), gates, {**asked, "targets": target}), minimize)
    progress(chosen.note)
    return _run(
        model, chosen.recipe, chosen.minimize, chosen.search, progress, budget=budget, out=out, **options
    )


_OPTIONS = ("trials", "jobs", "storage", "resume", "force", "subset", "validation", "margin", "threads")
_ASKED = (
    *("data", "train", "calibration", "eval", "preprocess", "classes"),
    *("targets", "retrain", "seed", "fix_inputs"),
)


def _recipe(recipe: Recipe, gates: str | Sequence[str], asked: dict[str, Any]) -> Recipe:
    for name in asked:
        if name not in _ASKED:
            raise UsageError(f"there is no argument '{name}'; there are {', '.join(_ASKED)}")
    texts = (gates,) if isinstance(gates, str) else tuple(gates)
    targets = asked.pop("targets", None)
    if targets is not None:
        given = targets if isinstance(targets, str) else ", ".join(targets)
        asked = {**asked, "targets": parse_calls(given, "targets")}
    return override(recipe, gates=texts or None, **asked)


def _run(
    model: Model, recipe: Recipe, minimize: str, entries: Sequence[str], progress: Progress, budget: str, out: str | Path,
    **options: Any,
) -> SearchRecord:  # fmt: skip
    if options.get("jobs", 1) > 1 and any(
        callable(getattr(recipe, role)) for role in ("data", "train", "calibration", "eval")
    ):
        raise UsageError(
            "a function of this process cannot feed other processes; give 'file.py:function', or jobs=1"
        )
    with _file(model) as (path, name):
        request = SearchRequest(
            path, recipe, Path(out), minimize, entries, parse_budget(budget), name=name, **options
        )
        return run_search(request, Calling(progress))


@contextmanager
def _file(model: Model) -> Iterator[tuple[Path, str]]:
    """Where the model is on disk, and what it is called; one in memory is written to a temporary file."""
    if isinstance(model, onnx.ModelProto):
        with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
            path = Path(folder) / "model.onnx"
            model_file.save(model_file.checked(model, OLDEST, sort_nodes), path)
            yield path, "model in memory"
    elif isinstance(model, str | Path):
        yield Path(model), ""
    else:
        raise UsageError(f"model takes a path or a model, not {type(model).__name__}")
