"""Random lists of passes over random networks: the same answers where nothing is lost, a valid model else.

What passes: after passes that lose nothing every output is what it was, within what rounding does; after others the model is
valid, takes and gives what it did, runs in a plain session of ONNX Runtime, and answers with finite numbers; or one line
says why a pass was refused. What fails: anything else, a defect that a pass confesses included (ContractError), and
a pass that is lossless by its options but had to leave an output's node alone is counted apart.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime

from torture_parts import Outcome, Request, failed, passed, skipped
from torture_parts._equal import difference
from torture_parts._graphs import Network, network
from torture_parts._pool import Done, each
from torture_parts._settings import EXACT, Setting, lossless, lossy

CASES = 2_000
LIMIT_S = 120.0
SAMPLES = 9
LIMITS = "Time: 120 s for a case."


def run(request: Request) -> Iterator[Outcome]:
    for done in each(partial(tried, seed=request.seed), warm, request.numbers, LIMIT_S, request.workers):
        yield judged(done)


def judged(done: Done) -> Outcome:
    """The outcome that a case gave, or what ended it."""
    return failed(done.number, done.fault) if done.fault else done.value


def warm() -> None:
    import torch

    import onnx_lathe

    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    onnx_lathe.rewrite(network(0).model, "fold")


def tried(number: int, seed: int) -> Outcome:
    random = np.random.default_rng([seed, number, 1])
    made = network((seed, number))
    exact = random.random() < 0.5
    steps = lossless(random, made.few, made.batched) if exact else lossy(random, made.batched)
    recipe = ", ".join(step.text for step in steps)
    case = f"{number} (opset {made.opset}, {recipe})"
    return applied(case, made, steps, exact)


def applied(case: str, made: Network, steps: list[Setting], exact: bool) -> Outcome:
    """What becomes of the network with these passes."""
    import onnx_lathe
    from onnx_lathe.errors import ContractError, LatheError

    kept: list[str] = []
    data = None
    if made.batched:  # `svd` keeps what it sees: the samples that outputs are compared on are among those
        more = made.more(SAMPLES, seed=5)
        data = {name: np.concatenate([made.feeds[name], more[name]]) for name in more}
    recipe = ", ".join(step.text for step in steps)

    def heard(instance: Any, report: Any) -> None:
        kept.extend(
            skip.reason for skip in report.skips if skip.reason.startswith(("left as it was", "left out"))
        )

    try:
        after = onnx_lathe.rewrite(made.model, recipe, data=data, on_report=heard)
    except ContractError as error:
        return failed(case, f"ContractError: {error}")
    except LatheError as error:
        return refused(case, error)
    wrong = unlike(made, after, steps, exact)
    if wrong:
        return failed(case, wrong)
    if kept and exact:
        return passed(case, "the same outputs, since a node was left as it was")
    return passed(case, "the same outputs" if exact else "valid and finite")


def refused(case: str, error: Exception) -> Outcome:
    """A refusal is one line."""
    if "\n" in str(error):
        return failed(case, f"the refusal is of several lines: {error}")
    return skipped(case, f"{type(error).__name__}: {general(str(error))}")


def general(text: str) -> str:
    """Without what differs from case to case, so that reasons can be counted."""
    import re

    return re.sub(r"\b[\d.]+", "0", re.sub(r"'[^']*'", "'…'", text))[:120]


def unlike(made: Network, after: onnx.ModelProto, steps: list[Setting], exact: bool) -> str:
    """What is wrong with the model that the passes wrote; empty if nothing is."""
    from onnx_lathe.optimizer.opening import open_given
    from onnx_lathe.optimizer.rounding import rounding_error
    from onnx_lathe.passes.graph.skeleton import signature

    try:
        onnx.checker.check_model(after, full_check=True)
    except Exception as error:  # noqa: BLE001 - whatever it says
        return f"the checker refuses it: {error}"
    if signature(open_given(made.model).model) != signature(after):
        return "it takes or gives something else"
    before = outputs(made.model, made.feeds)
    try:
        found = outputs(after, made.feeds)
    except Exception as error:  # noqa: BLE001 - whatever it says
        return f"ONNX Runtime refuses it: {error}"
    if not exact:
        bad = [name for name, values in found.items() if not np.isfinite(values).all()]
        return f"output '{bad[0]}' is not finite" if bad else ""
    tolerance = sum(max(step.tolerance, EXACT) for step in steps)
    return difference(before, found, tolerance, lambda: rounding_error(made.model, made.feeds, before))


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In a plain session, as anyone opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
