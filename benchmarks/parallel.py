"""The tables of docs/parallel.md, and the simulator beside measured runs.

    python benchmarks/parallel.py tables               writes the tables of docs/parallel.md anew
    python benchmarks/parallel.py simulate RUNS.json   the cost model beside runs that were measured; floor: within 25 %

RUNS.json is, or is a list of, {"rate": FLOP/s of one worker, "latency": seconds a message, "bandwidth": bytes a second, "runs":
[{"model": an ONNX file, "parallel": "height=2", "workers": 2, "batch": 8, "seconds": of one step}, ...]}. With "rates": [[m, k, n, FLOP/s],
...] the rate at each product is that of the nearest one in the list. A run with compressed gradients has "gradients": {"ratio":
bytes over bytes sent, "packing": seconds for a byte, "waits": whether the backward pass waits for the exchange}.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.optimizer.inspecting.analysis import Question
from onnx_lathe.optimizer.inspecting.sharing import Sharing, open_network, parse_sharing, share_model
from onnx_lathe.optimizer.report.sharing import layer_rows, strategy_rows
from onnx_lathe.optimizer.report.simulation import Rows, end_rows, milliseconds, scaling_rows, straggler_rows
from onnx_lathe.optimizer.simulating.machines import parse_machine
from onnx_lathe.optimizer.simulating.scaling import curve, parse_strategies
from onnx_lathe.optimizer.simulating.simulate import Request, Simulation, simulate
from onnx_lathe.optimizer.simulating.stragglers import parse_stragglers
from onnx_lathe.runtime.training.parallel.costs import Compression, Machine
from onnx_lathe.runtime.training.parallel.geometry import Product
from tests.support import vgg16

COMMAND = "python benchmarks/parallel.py tables"
DOCUMENT = ROOT / "docs" / "parallel.md"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
WORKERS, BATCH, MACHINES = 4, 32, 4096
RATE, LINK = "10TFLOP/s", "100Gb/s,2us"
FLOOR = 0.25
SIDES = (224, 512, 1024, 2048)
PER_IMAGE = (1, 2, 4, 8, 16)
"""Machines that share an image."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=("tables", "simulate"))
    parser.add_argument("runs", type=Path, nargs="?")
    options = parser.parse_args()
    if options.section == "tables":
        DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
        print(DOCUMENT)
        return
    if options.runs is None:
        parser.error("simulate needs the file of measured runs")
    given = json.loads(options.runs.read_text(encoding="utf-8"))
    rows = [row for one in (given if isinstance(given, list) else [given]) for row in compared(one)]
    for row in rows:
        print("  ".join(row[:-1]))
    sys.exit(any(row[-1] for row in rows))


def filled(page: str) -> str:
    """The page with each table between its marks made anew."""
    with tempfile.TemporaryDirectory() as scratch:
        made = tables(Path(scratch))
    found = set(re.findall(r"<!-- table: ([\w -]+) -->", page))
    if found != set(made):
        raise SystemExit(f"{DOCUMENT}: has marks for {sorted(found)}, and there are tables {sorted(made)}")
    return re.sub(
        r"(<!-- table: ([\w -]+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{made[match[2]]}{match[3]}",
        page,
        flags=re.DOTALL,
    )


def tables(folder: Path) -> dict[str, str]:
    """Name of a table -> its Markdown, as the commands print it."""
    paths = {
        "alexnet": named(onnx.load(LIGHT / "light_bvlc_alexnet.onnx"), folder / "alexnet.onnx"),
        "vgg16": vgg16.saved(folder, "N"),
        "resnet50": named(onnx.load(LIGHT / "light_resnet50.onnx"), folder / "resnet50.onnx"),
    }
    found = {}
    for name, path in paths.items():
        shared = share_model(path, Question({}, BATCH), parse_sharing(str(WORKERS)))
        found[f"{name} layers"] = markdown(alike(chosen(shared)))
        found[f"{name} strategies"] = markdown(strategy_rows(shared))
    for name in ("resnet50", "vgg16"):
        simulated = simulation(paths[name])
        found[f"{name} strong scaling"] = markdown(scaling_rows(simulated.strong))
        found[f"{name} ends"] = markdown(end_rows(simulated.strong))
        if name == "resnet50":
            found["stragglers"] = markdown(straggler_rows(simulated))
    found["large images"] = markdown(large_images(paths["vgg16"], folder))
    return found


def named(model: onnx.ModelProto, path: Path) -> Path:
    """The model with its layers called conv1, conv2, ..., fc1, ..."""
    for op, name in (("Conv", "conv"), ("Gemm", "fc")):
        nodes = [node for node in model.graph.node if node.op_type == op]
        for number, node in enumerate(nodes, 1):
            node.name = f"{name}{number}"
    onnx.save(model, path)
    return path


def chosen(found: Sharing) -> Rows:
    """The columns for a page: what the terminal shows, without width, which is as height here, and reasons."""
    columns, rows = layer_rows(found)
    places = [place for place, title in enumerate(columns) if title not in ("width", "why")]
    return [columns[place] for place in places], [[row[place] for place in places] for row in rows]


def alike(found: Rows) -> Rows:
    """One row for layers that differ in their name alone."""
    columns, rows = found
    names: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        names.setdefault(tuple(cells), []).append(name)
    return columns, [
        [one[0] if len(one) == 1 else f"{one[0]}, {len(one) - 1} alike", *cells]
        for cells, one in names.items()
    ]


def simulation(path: Path) -> Simulation:
    return simulate(
        Request(
            path,
            parse_strategies([]),
            parse_machine(RATE, LINK, None),
            MACHINES,
            256,
            BATCH,
            {},
            parse_stragglers("lognormal=0.3"),
        )
    )


def large_images(path: Path, folder: Path) -> Rows:
    """Milliseconds of a step of four images by VGG-16's convolutions, each image shared by height."""
    model = onnx.load(path, load_external_data=False)
    last = next(node.output[0] for node in model.graph.node if node.name == "pool5")
    del model.graph.node[[node.output[0] for node in model.graph.node].index(last) + 1 :]
    output = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, ["N", 512, "rows", "columns"])
    model.graph.output[0].CopyFrom(output)
    rows = []
    for side in SIDES:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[2].dim_value = dims[3].dim_value = side
        onnx.save(model, folder / "large.onnx")
        network, _ = open_network(folder / "large.onnx", Question({}))
        cells, alone = [], 0.0
        for share in PER_IMAGE:
            strategy = "data" if share == 1 else f"height={share}"
            found = curve(network.layers, strategy, parse_machine(RATE, LINK, None), [4 * share], 4, False)
            step = found.points[0].step
            alone = alone or step.seconds
            memory = f"{step.memory / 1e9:.1f} GB"
            cells.append(f"{milliseconds(step.seconds)} ({alone / step.seconds:.1f}x, {memory})")
        rows.append([f"{side} x {side}", *cells])
    heads = ["image", *(f"{share} an image" if share > 1 else "1 machine an image" for share in PER_IMAGE)]
    return heads, rows


def markdown(found: Rows) -> str:
    columns, rows = found
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def compared(measured: dict[str, Any]) -> Iterator[list[str]]:
    """(model, strategy, workers, measured ms, simulated ms, ratio, "" or why it fails) of each run."""
    machine = Machine(rate_of(measured), measured["latency"], measured["bandwidth"])
    for run in measured["runs"]:
        network, _ = open_network(Path(run["model"]), Question({}))
        (strategy,) = parse_strategies([run["parallel"]])
        sending = replace(machine, gradients=Compression(**run.get("gradients", {})))
        found = curve(network.layers, strategy, sending, [run["workers"]], run["batch"], False)
        if not found.points:
            raise SystemExit(f"{run['parallel']}: {found.refused[run['workers']]}")
        simulated = found.points[0].step.seconds
        ratio = simulated / run["seconds"]
        cells = [run["model"], strategy, str(run["workers"])]
        times = [milliseconds(run["seconds"]), milliseconds(simulated), f"{ratio:.2f}"]
        yield [*cells, *times, "" if abs(ratio - 1) <= FLOOR else "fails"]


def rate_of(measured: dict[str, Any]) -> float | Callable[[Product], float]:
    """FLOP/s, or that of the nearest product in ratio of its sizes."""
    rates: Sequence[Sequence[float]] = measured.get("rates", ())
    if not rates:
        return float(measured["rate"])

    def nearest(product: Product) -> float:
        sizes = (product.m, product.k, product.n)

        def distance(row: Sequence[float]) -> float:
            return sum(math.log(one / two) ** 2 for one, two in zip(sizes, row[:3], strict=True))

        return min(rates, key=distance)[3]

    return nearest


if __name__ == "__main__":
    main()
