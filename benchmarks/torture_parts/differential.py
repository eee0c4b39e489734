"""Every pass at the setting that loses nothing, on every model of the onnx package: the same outputs.

What passes: every output equal to the untouched model's, on the package's own data: types, shapes, NaN, integers and
texts the same, floats within what rounding does; or a model that is refused in one line, by a LatheError that is no
ContractError. Passes that have no such setting are named in _settings.py, with what they lose. A case is a model and a pass;
the order of the models is drawn by the seed. A model whose own answers change from run to run, as one that draws random numbers does,
has its structure checked alone.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import onnx

from torture_parts import Outcome, Request, failed, passed, skipped
from torture_parts._equal import difference
from torture_parts._pool import each
from torture_parts._settings import LOSSLESS, Setting
from torture_parts._shipped import shipped
from torture_parts.pipelines import judged, refused
from torture_parts.pipelines import warm as warm_up

CASES = 1_000_000
"""There are fewer: a run ends with the last model."""
LIMIT_S = 600.0
LIMITS = "Time: 600 s for a case."
SNAPPED = 64
"""Steps from the least to the largest value of a weight, for passes that keep few values."""


def run(request: Request) -> Iterator[Outcome]:
    count = len(LOSSLESS) * len(shipped())
    numbers = range(request.first, min(request.first + request.cases, count))
    for done in each(partial(tried, seed=request.seed), warm, numbers, LIMIT_S, request.workers):
        yield judged(done)


def warm() -> None:
    warm_up()
    shipped()


@cache
def order(seed: int) -> np.ndarray:
    """Places in shipped()."""
    return np.random.default_rng(seed).permutation(len(shipped()))


@dataclass(frozen=True)
class Base:
    """A model before any pass. `reason`: why it is none to compare with, or empty."""

    model: onnx.ModelProto
    feeds: Mapping[str, Any]
    expected: Mapping[str, np.ndarray]
    steady: bool = True
    reason: str = ""

    @cached_property
    def rounding(self) -> Mapping[str, float]:
        from onnx_lathe.optimizer.rounding import rounding_error

        return rounding_error(self.model, self.feeds, self.expected)


_known: OrderedDict[tuple[str, bool], Base] = OrderedDict()


def base(one: Any, few: bool) -> Base:
    """What the model computes, found once for the passes that follow one another on it."""
    key = (one.name, few)
    if key not in _known:
        if len(_known) > 1:
            _known.popitem(last=False)
        _known[key] = _opened(one, few)
    return _known[key]


def _opened(one: Any, few: bool) -> Base:
    from onnx_lathe.errors import LatheError
    from onnx_lathe.runtime.running import ort

    model, feeds = one.load()
    if few:
        model = snapped(model)
    try:
        first = ort.session(model, threads=1)
        feeds = ort.random_feeds(first, batch=2) if feeds is None else feeds
        expected = ort.run(first, feeds)
        again = ort.run(ort.session(model, threads=1), feeds)
    except (LatheError, RuntimeError) as error:  # the latter for a type that it has no arrays of
        return Base(model, feeds or {}, {}, reason=f"ONNX Runtime does not run it: {str(error)[:60]}")
    steady = expected.keys() == again.keys() and all(
        values.shape == again[name].shape
        and np.array_equal(values, again[name], equal_nan=values.dtype.kind in "fc")
        for name, values in expected.items()
    )
    return Base(model, feeds, expected, steady)


def snapped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 weights have at most SNAPPED + 1 values each."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size <= 256 or not np.isfinite(values).all() or not (span := float(np.ptp(values))):
            continue
        step = span / SNAPPED
        tensor.CopyFrom(
            onnx.numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), tensor.name)
        )
    return copy


def tried(number: int, seed: int) -> Outcome:
    place, which = divmod(number, len(LOSSLESS))
    one, setting = shipped()[order(seed)[place]], LOSSLESS[which]
    case = f"{number} ({one.name}, {setting.text})"
    known = base(one, setting.few)
    if known.reason:
        return skipped(case, known.reason)
    return compared(case, known, setting)


def compared(case: str, known: Base, setting: Setting) -> Outcome:
    """What becomes of the model with this pass."""
    import onnx_lathe
    from onnx_lathe.errors import ContractError, LatheError
    from onnx_lathe.runtime.running import ort

    data = data_of(known.feeds)
    if setting.data and data is None:
        return skipped(case, "its inputs hold no samples to learn from")
    reports: list[Any] = []
    try:
        after = onnx_lathe.rewrite(
            known.model, setting.text, data=data, on_report=lambda instance, report: reports.append(report)
        )
    except ContractError as error:
        return failed(case, f"ContractError: {error}")
    except LatheError as error:
        return refused(case, error)
    if not known.steady:
        return passed(case, "its own answers change from run to run")
    try:
        found = ort.run(ort.session(after, threads=1), known.feeds)
    except LatheError as error:
        return failed(case, f"what it wrote does not run: {error}")
    if said := difference(known.expected, found, setting.tolerance, lambda: known.rounding):
        return failed(case, said)
    skips = [skip.reason for report in reports for skip in report.skips]
    if any(reason.startswith(("left as it was", "left out")) for reason in skips):
        return passed(case, f"{setting.name}: the same, since a node or the pass was left out")
    edits = any(report.edits for report in reports)
    return passed(case, f"{setting.name}: {'the same outputs' if edits else 'nothing to do'}")


def data_of(feeds: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The feeds as samples, if all are tensors with a first axis in common."""
    arrays = {name: np.asarray(value) for name, value in feeds.items() if not isinstance(value, list)}
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(arrays) < len(feeds) or len(counts) != 1 or 0 in counts:
        return None
    return arrays
