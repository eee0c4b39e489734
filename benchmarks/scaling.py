"""How the time of each pass grows with the number of nodes and with the size of weights.

    python benchmarks/scaling.py [--passes fold,prune] [--nodes 100,1000,10000,100000] [--channels 16,64,256] [--limit 120] [--plot FILE.png]

A residual network of blocks (1 x 1 convolution, batch normalization, Relu, every second block added to the one
before it) with random weights, 4 channels of 5 x 5; with --channels, 8 blocks of so many channels instead. Of each pass without training: processor
seconds of import, pass and export together, and the slope of their logarithm over that of the number of nodes (or
weights) between the two largest sizes within the limit. Each case runs in a process of its own, which is ended after `--limit`
processor seconds; larger ones of the same pass are not tried then. Floor: a slope of at most 1.2.
"""

import argparse
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FLOOR = 1.2
NODES, CHANNELS = (100, 1_000, 10_000, 100_000), (16, 64, 256, 1024)
SETTINGS = {
    "codebook": {"bits": 2, "min_size": 1},
    "prune": {"sparsity": 0.5, "min_size": 1},
    "prune_nm": {"n": 2, "m": 4, "min_size": 1},
    "prune_channels": {"sparsity": 0.25},
    "int4": {"min_size": 1},
    "svd": {"rank": 2},
    "tensor_train": {"rank": 2},
}
"""Small weights count here; without a size, these passes would do nothing."""


def network(nodes: int, channels: int = 4) -> onnx.ModelProto:
    """About so many nodes in blocks of four: Conv, BatchNormalization, Relu, and Add or another Relu."""
    rng = np.random.default_rng(0)
    made, tensors, top, before = [], [], "x", "x"

    def store(name: str, values: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    for block in range(max(nodes // 4, 1)):
        weight = store(
            f"w{block}", rng.standard_normal((channels, channels, 1, 1)) * math.sqrt(0.5 / channels)
        )
        rest = [
            store(f"{what}{block}", np.full(channels, value))
            for what, value in zip("sbmv", (1, 0, 0, 1), strict=True)
        ]
        made.append(helper.make_node("Conv", [top, weight], [f"c{block}"], f"conv{block}"))
        made.append(
            helper.make_node("BatchNormalization", [f"c{block}", *rest], [f"n{block}"], f"norm{block}")
        )
        made.append(helper.make_node("Relu", [f"n{block}"], [f"r{block}"], f"relu{block}"))
        op, inputs = ("Add", [f"r{block}", before]) if block % 2 else ("Relu", [f"r{block}"])
        made.append(helper.make_node(op, inputs, [f"y{block}"], f"end{block}"))
        top = f"y{block}"
        before = top if block % 2 else before
    shape = ["batch", channels, 5, 5]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", top)]
    graph = helper.make_graph(made, "scaling", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def names() -> list[str]:
    """The passes that need no training."""
    from onnx_lathe.passes.core.registry import all_passes

    return [name for name, kind in all_passes().items() if "trainer" not in _needs(kind)]


def _needs(kind: type) -> tuple[str, ...]:
    return kind.needs if isinstance(kind.needs, tuple) else ()


def seconds(name: str, nodes: int, channels: int) -> tuple[float, int]:
    """(processor seconds of one step, its edits), in this process."""
    from onnx_lathe.optimizer.step import apply_pass
    from onnx_lathe.passes.core.options import configure
    from onnx_lathe.passes.core.registry import find
    from onnx_lathe.passes.core.services import Context
    from onnx_lathe.runtime.data import open_source
    from onnx_lathe.runtime.files.signature import model_inputs
    from onnx_lathe.runtime.running.calibration import StreamingCalibrator
    from onnx_lathe.runtime.running.ort import OneTimeEvaluator, PairTimer

    def step(model: onnx.ModelProto) -> int:
        calibrator = StreamingCalibrator(open_source({"x": data}, model_inputs(model)), limit=4)
        context = Context(
            calibrator=calibrator, evaluator=OneTimeEvaluator(), timer=PairTimer(0.05), original=model
        )
        _, report = apply_pass(configure(find(name), SETTINGS.get(name, {})), model, context)
        return len(report.edits)

    data = np.random.default_rng(1).standard_normal((4, channels, 5, 5)).astype(np.float32)
    step(network(8, channels))  # imports
    model = network(nodes, channels)
    started = time.process_time()
    edits = step(model)
    return time.process_time() - started, edits


def measured(name: str, nodes: int, channels: int, limit: float) -> tuple[float, int] | str:
    """As `seconds`, in a process of its own; why not, if it failed or took too long."""
    command = [sys.executable, __file__, "--case", name, str(nodes), str(channels), "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"over {limit:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    spent, edits = done.stdout.split()[-2:]
    return float(spent), int(edits)


def slope(sizes: list[int], times: list[float]) -> float:
    """Of the logarithms of the last two."""
    return math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])


def table(
    chosen: list[str], cases: list[tuple[int, int, int]], what: str, limit: float
) -> dict[str, list[tuple[int, float]]]:
    """Prints a row per pass; `cases` are (size, nodes, channels). Returns what was measured."""
    heads = [f"{size:,}" for size, _, _ in cases]
    print(f"\n| pass | {' | '.join(f'{head} {what}' for head in heads)} | slope | floor |")
    print(f"|---|{'---|' * (len(cases) + 2)}")
    found: dict[str, list[tuple[int, float]]] = {}
    for name in chosen:
        cells, points, edits = [], [], 0
        for size, nodes, channels in cases:
            got = measured(name, nodes, channels, limit)
            if isinstance(got, str):
                cells.append(got)
                break
            points.append((size, got[0]))
            edits = got[1]
            cells.append(f"{got[0]:.2f} s")
        cells += ["-"] * (len(cases) - len(cells))
        found[name] = points
        said, verdict = "-", "-"
        if len(points) > 1:
            value = slope(*map(list, zip(*points, strict=True)))
            said, verdict = f"{value:.2f}", "met" if value <= FLOOR else "missed"
        print(
            f"| `{name}`{'' if edits else ' (changed nothing)'} | {' | '.join(cells)} | {said} | {verdict} |",
            flush=True,
        )
    return found


def plot(found: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Seconds over nodes, both on logarithmic axes."""
    from matplotlib import pyplot

    for name, points in found.items():
        if points:
            pyplot.loglog(*zip(*points, strict=True), marker="o", label=name)
    pyplot.xlabel("nodes")
    pyplot.ylabel("processor seconds")
    pyplot.legend(fontsize="x-small")
    pyplot.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", default="")
    parser.add_argument("--nodes", default=",".join(map(str, NODES)))
    parser.add_argument("--channels", default=",".join(map(str, CHANNELS)))
    parser.add_argument("--limit", type=float, default=120.0, help="processor seconds for each case")
    parser.add_argument("--plot", type=Path, help="needs matplotlib")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, nodes, channels = options.case
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(options.limit), math.ceil(options.limit) + 5))
        print(*seconds(name, int(nodes), int(channels)))
        return
    chosen = options.passes.split(",") if options.passes else names()
    sizes, widths = (
        [int(one) for one in text.split(",") if one] for text in (options.nodes, options.channels)
    )
    found = table(chosen, [(size, size, 4) for size in sizes], "nodes", options.limit) if sizes else {}
    if widths:
        table(chosen, [(8 * width**2, 32, width) for width in widths], "weights", options.limit)
    print(f"\nlargest memory of a case: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10:,} MB")
    if options.plot is not None:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
