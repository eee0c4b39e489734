"""Random networks and those of the onnx package through every target that runs here: what builds computes the same.

What passes: `check` refuses nodes of a model, or the model, exactly where `build` fails; what `build` wrote answers as ONNX
Runtime does of the given model, in every output: the targets onnx, ort, ncnn and litert, opened as their users do; and
`pack` unpacks to the bytes of the target onnx. A case is a model on all targets: every odd one a random network, every even
one of the package.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from torture_parts import Outcome, Request, failed, passed, skipped
from torture_parts._equal import difference
from torture_parts._graphs import network
from torture_parts._pool import each
from torture_parts._shipped import shipped
from torture_parts.pipelines import general
from torture_parts.pipelines import warm as warm_up

CASES = 1_000
LIMIT_S = 180.0
LIMITS = "Time: 180 s for a case."
FILES, CHECKED = ("onnx", "ort", "pack"), ("ort", "ncnn", "litert")
TOLERANCE: Mapping[str, float] = {"onnx": 1e-5, "ort": 5e-5, "ncnn": 1e-3, "litert": 1e-3}
"""Of an output's largest value. ncnn and LiteRT have approximations of their own for exponentials and their like."""
TRIED = ("onnx", "ort", "pack", "ncnn", "litert")


def run(request: Request) -> Iterator[Outcome]:
    work = partial(tried, seed=request.seed, within=request.folder)
    for done in each(work, warm, request.numbers, LIMIT_S, request.workers):
        yield from [failed(done.number, done.fault)] if done.fault else done.value


def warm() -> None:
    warm_up()
    shipped()


@cache
def order(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(shipped()))


def tried(number: int, seed: int, within: Path) -> list[Outcome]:
    """The outcome on each target."""
    import tempfile

    if number % 2:
        made = network((seed, number))
        name, model, feeds = f"opset {made.opset}", made.model, made.feeds
    else:
        one = shipped()[order(seed)[number // 2 % len(shipped())]]
        name, (model, feeds) = one.name, one.load()
    with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=within) as folder:
        return through_targets(f"{number} ({name})", model, feeds, Path(folder))


def through_targets(
    case: str,
    model: onnx.ModelProto,
    feeds: Mapping[str, Any] | None,
    folder: Path,
    targets: Sequence[str] = TRIED,
) -> list[Outcome]:
    """What becomes of the model on each target; a single outcome if it is none to compare with."""
    from onnx_lathe.errors import LatheError
    from onnx_lathe.optimizer.rounding import rounding_error
    from onnx_lathe.runtime.running import ort

    try:
        session = ort.session(model, threads=1)
        feeds = ort.random_feeds(session, batch=2) if feeds is None else feeds
        expected = ort.run(session, feeds)
        again = ort.run(ort.session(model, threads=1), feeds)
    except (LatheError, RuntimeError) as error:
        return [skipped(case, f"ONNX Runtime does not run it: {str(error)[:50]}")]
    if any(
        not np.array_equal(again.get(key), value, equal_nan=value.dtype.kind in "fc")
        for key, value in expected.items()
    ):
        return [skipped(case, "its own answers change from run to run")]
    path = folder / "given.onnx"
    onnx.save(model, path)
    return [
        _through(f"{case} {target}", target, path, folder / target, feeds, expected, lambda: rounding_error(model, feeds, expected))
        for target in targets
    ]  # fmt: skip


def _through(
    case: str, target: str, path: Path, out: Path, feeds: Any, expected: Any, rounding: Any
) -> Outcome:
    import onnx_lathe
    from onnx_lathe.errors import ContractError, LatheError

    foretold = _foretold(target, path)
    try:
        record = onnx_lathe.build(path, target, out)
        error = record.targets[0].error
    except ContractError as defect:
        return failed(case, f"ContractError: {defect}")
    except LatheError as refusal:
        error = str(refusal)
    if error:
        if "\n" in error:
            return failed(case, f"the refusal is of several lines: {error}")
        if not foretold and target in CHECKED and not unrunnable(error):
            return failed(case, f"check foretold nothing, and build says: {error}")
        return passed(case, f"{target}: refused as check says" if foretold else f"{target}: {general(error)}")
    if foretold:
        return failed(case, f"check says '{foretold}', and build builds it")
    if target == "pack":
        return _unpacked(case, out)
    said = _unlike(target, out / record.targets[0].files[0], feeds, expected, rounding)
    return failed(case, said) if said else passed(case, f"{target}: the same outputs")


def unrunnable(error: str) -> bool:
    """Whether the model was refused before a target saw it: `check`, which runs nothing, does not ask for inputs."""
    return "give data for it" in error or "give --data" in error


def _foretold(target: str, path: Path) -> str:
    """The reason that `check` gives why the model cannot be built; empty if there is none."""
    import onnx_lathe
    from onnx_lathe.errors import LatheError

    if target not in CHECKED:
        return ""
    try:
        (found,) = onnx_lathe.check(path, target)
    except LatheError as error:
        return str(error)
    return "; ".join(f"{node} ({op}) {reason}" for node, op, reason in found.refused)


def _unpacked(case: str, out: Path) -> Outcome:
    import onnx_lathe

    packed = next(out.glob("*.lathe"))
    onnx_lathe.unpack(packed, out / "back.onnx")
    wanted = out.parent / "onnx" / "model.onnx"
    if not wanted.is_file():
        return failed(case, "pack took what the target onnx refused")
    if (out / "back.onnx").read_bytes() != wanted.read_bytes():
        return failed(case, "packed and unpacked, the file is another than the target onnx writes")
    return passed(case, "pack: the same bytes")


def _unlike(target: str, path: Path, feeds: Any, expected: Any, rounding: Any) -> str:
    """What is other in the outputs of the file; empty if nothing is."""
    from onnx_lathe.errors import LatheError
    from onnx_lathe.runtime.running import ort
    from onnx_lathe.runtime.targets.core.registry import find

    try:
        session = ort.as_opened(path, 1) if target in FILES else find(target)().reopen(path, 1).session
        found = ort.run(session, feeds)
    except LatheError as error:
        return f"what was built does not run: {error}"
    if target in FILES:
        return difference(expected, found, TOLERANCE[target], rounding)
    if any(one.dtype == np.float64 for one in expected.values()):  # which phones' runtimes compute in float32
        expected = {
            key: value.astype(np.float32) if value.dtype == np.float64 else value
            for key, value in expected.items()
        }
    return difference(expected, found, TOLERANCE[target], rounding)
