"""`onnx_lathe.simulate`: the Python twin of the command `optimize simulate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import arguments
from onnx_lathe.optimizer.simulating import simulate as simulating
from onnx_lathe.optimizer.simulating.machines import parse_machine
from onnx_lathe.optimizer.simulating.scaling import parse_strategies
from onnx_lathe.optimizer.simulating.stragglers import parse_stragglers


def simulate(
    model: onnx.ModelProto | str | Path,
    *,
    parallel: str | Sequence[str] = (),
    machines: int = 1024,
    link: str = "100Gb/s,2us",
    rate: str = "10TFLOP/s",
    memory: str | None = None,
    batch: int = 256,
    each: int = 32,
    shapes: Mapping[str, Sequence[int]] | None = None,
    stragglers: str | None = None,
    backups: int | None = None,
    seed: int = 0,
) -> simulating.Simulation:
    """Time per training step against the number of machines, by strategy, from a model of its cost; nothing is run.

    parallel: strategies such as "height" or "pipeline=4,micro=8"; unasked data, height, filter and channel. machines: up
    to so many, of `rate`, `link` and `memory` as the command takes them. batch: samples of a step in strong scaling; each:
    samples of each machine in weak scaling. shapes: sizes of inputs that the model leaves open, by name. stragglers: how
    much longer arithmetic takes, such as "lognormal=0.3"; backups: machines that nobody waits for then.

    Raises UsageError for values that are none, a model without layers to share, and a strategy that fits nowhere;
    ModelError as loading does.
    """
    for name, text in (
        ("link", link),
        ("rate", rate),
        ("memory", memory or ""),
        ("stragglers", stragglers or ""),
    ):
        if not isinstance(text, str):
            raise UsageError(f"{name} takes a text, not {type(text).__name__}")
    request = simulating.Request(
        arguments.model(model),
        parse_strategies(arguments.texts(parallel, "parallel")),
        parse_machine(rate, link, memory),
        arguments.whole(machines, "machines"),
        arguments.whole(batch, "batch"),
        arguments.whole(each, "each"),
        {} if shapes is None else shapes,
        None if stragglers is None else parse_stragglers(stragglers),
        None if backups is None else arguments.whole(backups, "backups"),
        arguments.whole(seed, "seed"),
    )
    simulating.check(request)
    return simulating.simulate(request)
