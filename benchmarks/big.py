"""Memory of each command on models of many gigabytes of weights, some of them single tensors of over 2 GiB.

    python benchmarks/big.py [--gigabytes 0.25] [--only fold,pack] [--folder DIR] [--no-page]

`--gigabytes 2.5,6,12` does all sizes of the page, big.md. A model is a chain of MatMul and Relu with random weights in
external data, written tensor by tensor; from 2.5 GB on its last weight is over 2 GiB. Each command runs in a process of
its own, and twenty times a second the memory of it and of all its children is added up: RssAnon of /proc/PID/status,
which is memory of their own, and beside it VmRSS, which counts pages of mapped files too. Those the system takes back
when it needs them, so the floor is on the first: 1.6 times the weights, for 12 GB 8 GB in all.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("big.md")
RATIO, STREAMED_GB, STREAMED_BYTES = 1.6, 12.0, 8e9
"""The floors: times the weights, and from so many gigabytes on so many bytes in all."""
SIDE, LAST = 8192, 65664
"""Of a square weight, 268 MB, and columns of the last weight of large models, 2.15 GB."""
PAGE_BYTES = 4096
RECIPES = {
    "fold": "fold",
    "prune": "prune(sparsity=0.5)",
    "codebook": "codebook(bits=4)",
    "int8": "int8(activations=false)",
    "int4": "int4",
    "fold,prune,codebook": "fold,prune(sparsity=0.5),codebook(bits=4)",
}
"""Steps of `optimize`, which loads, checks and saves before and after."""
COMMANDS = ("inspect", *RECIPES, "pack", "unpack")


@dataclass(frozen=True)
class Peak:
    """Of a process and its children together, in bytes, at its highest; `said` is its last line."""

    own: int
    resident: int
    seconds: float
    code: int
    said: str


def make(path: Path, gigabytes: float) -> int:
    """Writes a model of about so many bytes of weights, and returns how many. One block of weights is in memory."""
    wide = gigabytes >= 2.5
    side = SIDE if gigabytes >= 1 else 1024
    square = 4 * side * side
    last = LAST if wide else side
    layers = max(1, round((gigabytes * 1e9 - 4 * side * last) / square))
    columns = [side] * layers + [last]
    nodes, tensors, end, top, rng = [], [], 0, "x", np.random.default_rng(0)
    with path.with_name(path.name + ".data").open("wb") as data:
        for number, width in enumerate(columns):
            tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=(side, width))
            offset, length = -(-end // PAGE_BYTES) * PAGE_BYTES, 4 * side * width
            tensor.data_location = TensorProto.EXTERNAL
            entries = (("location", data.name.rpartition("/")[2]), ("offset", offset), ("length", length))
            for key, value in entries:
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            data.write(b"\0" * (offset - end))
            for _ in range(0, side, 256):
                block = rng.standard_normal((min(256, side), width), np.float32)
                data.write((block * np.float32(math.sqrt(2 / side))).data)
            end = offset + length
            nodes.append(helper.make_node("MatMul", [top, f"w{number}"], [f"m{number}"], f"layer{number}"))
            top = f"m{number}"
            if number < layers:
                nodes.append(helper.make_node("Relu", [top], [f"r{number}"], f"relu{number}"))
                top = f"r{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", side), (top, columns[-1]))
    ]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return end


def command(name: str, model: Path, out: Path) -> list[str]:
    """What is run; `unpack` takes what `pack` wrote."""
    packed = out / "packed.lathe"
    if name == "inspect":
        rest = ["inspect", str(model)]
    elif name == "pack":
        rest = ["pack", str(model), "-o", str(packed), "--effort", "fast"]
    elif name == "unpack":
        rest = ["unpack", str(packed), "-o", str(out / "unpacked.onnx"), "--limit", "64"]
    else:
        rest = [str(model), "--passes", RECIPES[name], "--no-latency", "--quiet", "--out", str(out / "run")]
    return [sys.executable, "-m", "onnx_lathe", *rest]


def measured(line: Sequence[str], every: float = 0.05) -> Peak:
    """Runs a command line to its end."""
    started, own, resident = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(line, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            found = [_memory(one) for one in tree(process.pid)]
            own = max(own, sum(one[0] for one in found))
            resident = max(resident, sum(one[1] for one in found))
            time.sleep(every)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines() or [""]
    return Peak(own, resident, time.perf_counter() - started, process.returncode, lines[-1])


def tree(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    with suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            for child in Path(f"/proc/{process}/task/{task}/children").read_text().split():
                yield from tree(int(child))


def _memory(process: int) -> tuple[int, int]:
    """(RssAnon, VmRSS) in bytes; nothing of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    table = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "VmRSS")))
    own, resident = (int(table.get(name, "0 kB").split()[0]) << 10 for name in ("RssAnon", "VmRSS"))
    return own, resident


def met(peak: Peak, weights: int, gigabytes: float) -> bool:
    """Whether the floor is."""
    return peak.own <= (STREAMED_BYTES if gigabytes >= STREAMED_GB else RATIO * weights)


def rows(gigabytes: float, wanted: Sequence[str], scratch: Path) -> Iterator[str]:
    model = scratch / "model.onnx"
    weights = make(model, gigabytes)
    for name in wanted:
        if name == "unpack" and not (scratch / "packed.lathe").is_file():
            measured(command("pack", model, scratch))
        peak = measured(command(name, model, scratch))
        for left in (scratch / "run", scratch / "unpacked.onnx"):
            _remove(left)
        outcome = "met" if met(peak, weights, gigabytes) else "**missed**"
        if peak.code:
            outcome = f"**exit code {peak.code}**: {peak.said}"
        cells = f"{weights / 1e9:.3g} GB", name, f"{peak.own / 1e9:.2f} GB", f"{peak.own / weights:.2f}"
        yield (
            "| "
            + " | ".join((*cells, f"{peak.resident / weights:.2f}", f"{peak.seconds:.0f} s", outcome))
            + " |"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        for one in sorted(path.rglob("*"), reverse=True):
            one.rmdir() if one.is_dir() else one.unlink()
        path.rmdir()
    for one in (path, path.with_name(path.name + ".data")):
        with suppress(OSError):
            one.unlink()


HEAD = (
    "| weights | command | own memory | times the weights | resident, times the weights | time | floor |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of each command on models of many gigabytes.")
    parser.add_argument("--gigabytes", default="0.25", help="of weights, with commas between (default 0.25)")
    parser.add_argument(
        "--only", default=",".join(COMMANDS[:-3] + COMMANDS[-2:]), help="commands, with commas"
    )
    parser.add_argument("--folder", type=Path, help="where the models are made, and removed again")
    given = parser.parse_args()
    wanted = [name for name in COMMANDS if name in given.only.split(",") or name == given.only]
    print(f"{date.today().isoformat()}\n\n{HEAD}", flush=True)
    for gigabytes in map(float, given.gigabytes.split(",")):
        with tempfile.TemporaryDirectory(prefix="big-", dir=given.folder) as scratch:
            for row in rows(gigabytes, wanted, Path(scratch)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
