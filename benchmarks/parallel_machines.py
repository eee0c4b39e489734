"""Data parallelism between two machines over slow links: time of a step by what is sent of the gradients, and what the cost
model of `optimize simulate` foretells.

    python benchmarks/parallel_machines.py [--steps 30] [--links 1Gb/s,1ms 100Mb/s,10ms] [--runs FILE]
                                              as root, on Linux

The machines are network namespaces: tc bounds their rate, and tests/support/relay.py delays every frame. LeNet-5 on MNIST,
32 images a step in all, plain SGD from weights that are 0.7 of the trained ones. Steps of three kinds take turns, each with
weights of its own: without gradients in common; the same with gradients packed and unpacked, and nothing sent; and with the
exchange. Foretold is the last of them: the first as arithmetic, what the second takes more as packing, the link as it is given,
and the bytes as they were counted. Floor: within 25 %. Ends with 1 if it is missed. --runs writes what was measured for
`python benchmarks/parallel.py simulate`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.optimizer.inspecting.analysis import Question
from onnx_lathe.optimizer.inspecting.sharing import open_network
from onnx_lathe.optimizer.simulating.machines import parse_link
from onnx_lathe.optimizer.simulating.scaling import curve
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.costs import ELEMENT_BYTES, Compression, Machine
from onnx_lathe.runtime.training.parallel.gradients import Hook, Threshold, Traffic
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support import namespaces
from tests.support.distributed import digits, lenet, moved
from tests.support.models import MODELS

KINDS = ("full", "half", "threshold")
BATCH = 16
"""Images of each worker."""
WARM = 3
FLOOR = 0.25
MODEL = MODELS / "lenet5-mnist" / "model.onnx"


class Alone(Threshold):
    """All that a worker does to gradients, as if the others had sent the same."""

    def _exchanged(self, codes: torch.Tensor | None, device: torch.device) -> list[torch.Tensor | None]:
        return [codes] * self.traffic.workers


def packed_alone(kind: str, settings: dict[str, Any]) -> Hook:
    """A hook as that of `kind`, which sends nothing."""
    if kind == "threshold":
        return Alone(settings["gradient_threshold"], Traffic(2)).average

    def average(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        given: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        buffer = bucket.buffer()
        if kind == "half":
            buffer.copy_(buffer.to(torch.float16).div_(2))
        given.set_result(buffer)
        return given

    return average


def work(kind: str, steps: int) -> None:
    """One worker: prints seconds of a step (medians) without an exchange, with packing alone, and with all, and bytes."""
    torch.set_num_threads(1)
    group = LaunchedGroup(cuda=False)
    settings = asdict(Retrain.Config()) | {"gradients": kind}
    workers, alone = DataParallel(group, settings), DataParallel(group, settings)
    alone.hook = packed_alone(kind, settings)
    modules = [GraphModule(moved(lenet())) for _ in range(3)]
    for module in modules:
        module.train()
    networks = [modules[0], alone.parallel(modules[1]), workers.parallel(modules[2])]
    optimizers = [torch.optim.SGD(list(module.parameters()), 0.01) for module in modules]
    seconds: list[list[float]] = [[], [], []]
    for batch in workers.share(digits(2 * BATCH * (steps + WARM))).batches(BATCH):
        for network, optimizer, took in zip(networks, optimizers, seconds, strict=True):
            group.total(1.0)  # so that nobody waits for the other's step before
            begun = time.perf_counter()
            output = network(**{name: torch.from_numpy(array) for name, array in batch.inputs.items()})
            optimizer.zero_grad()
            cross_entropy(output, torch.from_numpy(batch.labels)).backward()
            optimizer.step()
            took.append(time.perf_counter() - begun)
    found = [group.most(statistics.median(took[WARM:]))[0] for took in seconds]
    if group.rank == 0:
        print(json.dumps([*found, workers.metrics()]))
    group.total(1.0)  # none leaves while another is in an exchange
    del networks, modules
    dist.destroy_process_group()


def measured(
    made: list[namespaces.Machine], kind: str, steps: int
) -> tuple[float, float, float, dict[str, float]]:
    started = []
    for rank, machine in enumerate(made):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 29500}
        environment = os.environ | {name: str(number) for name, number in place.items()}
        environment |= {"MASTER_ADDR": made[0].name, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--work", kind, "--steps", str(steps)]
        started.append(machine.start(command, env=environment, stdout=subprocess.PIPE))
    said = [process.communicate(timeout=600)[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{kind}: a worker failed")
    alone, packed, shared, metrics = json.loads(said[0].splitlines()[-1])
    return alone, packed, shared, metrics


def described(kind: str, link: str, alone: float, packed: float, metrics: dict[str, float]) -> dict[str, Any]:
    """What the cost model is told of a run: as `python benchmarks/parallel.py simulate` reads it, but for its time."""
    latency, bandwidth = parse_link(link)
    network, _ = open_network(MODEL, Question({}))
    arithmetic = curve(network.layers, "data", Machine(1.0), [1], BATCH, False).points[0].step.seconds
    size = ELEMENT_BYTES * sum(layer.weights for layer in network.layers)
    sending = {"ratio": metrics["gradient_ratio"], "packing": max(0.0, packed - alone) / size}
    run = {"model": str(MODEL), "parallel": "data", "workers": 2, "batch": 2 * BATCH}
    run["gradients"] = sending | {"waits": kind == "threshold"}
    return {"rate": arithmetic / alone, "latency": latency, "bandwidth": bandwidth, "runs": [run]}


def foretold(told: dict[str, Any]) -> float:
    """Seconds of a step."""
    (run,) = told["runs"]
    network, _ = open_network(MODEL, Question({}))
    sending = Compression(**run["gradients"])
    machine = Machine(told["rate"], told["latency"], told["bandwidth"], gradients=sending)
    return (
        curve(network.layers, "data", machine, [run["workers"]], run["batch"], False).points[0].step.seconds
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--links", nargs="*", default=["1Gb/s,1ms", "100Mb/s,10ms"])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps)
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the namespaces are removed
    print(
        "| link | gradients | sent a step | step ms | without exchange | packing | foretold | foretold / measured |"
    )
    print("|---|---|---|---|---|---|---|---|")
    missed, runs = False, []
    for link in options.links:
        latency, bandwidth = parse_link(link)
        with namespaces.machines(2) as made, namespaces.delayed(made[0], made[1], 1e3 * latency):
            for machine in made:
                machine.shape(8e-6 * bandwidth)
            for kind in KINDS:
                alone, packed, shared, metrics = measured(made, kind, options.steps)
                told = described(kind, link, alone, packed, metrics)
                expected = foretold(told)
                told["runs"][0]["seconds"] = shared
                runs.append(told)
                cells = [f"{1e3 * seconds:.1f}" for seconds in (shared, alone, packed - alone, expected)]
                sent = f"{metrics['bytes_per_step'] / 1e3:,.0f} kB"
                print(
                    f"| {link} | {kind} | {sent} | {' | '.join(cells)} | {expected / shared:.2f} |",
                    flush=True,
                )
                missed |= abs(expected / shared - 1) > FLOOR
    if options.runs:
        options.runs.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
