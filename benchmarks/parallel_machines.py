"""Data parallelism between two machines over slow links: time of a step by what is sent of the gradients, and what the cost
model of `optimize simulate` foretells.

    python benchmarks/parallel_machines.py [--steps 30] [--links 1Gb/s,1ms 100Mb/s,10ms]      as root, on Linux

The machines are network namespaces: tc bounds their rate, and tests/support/relay.py delays every frame. LeNet-5 on MNIST,
32 images a step in all, plain SGD from weights that are 0.7 of the trained ones. Foretold is one step with the arithmetic as
it takes without an exchange, the link as it is given, and for compressed gradients as many fewer bytes as were counted.
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
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.optimizer.inspecting.analysis import Question
from onnx_lathe.optimizer.inspecting.sharing import open_network
from onnx_lathe.optimizer.simulating.machines import parse_link
from onnx_lathe.optimizer.simulating.scaling import curve
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.costs import Machine
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support import namespaces
from tests.support.distributed import digits, lenet, moved
from tests.support.models import MODELS

KINDS = ("full", "half", "threshold")
BATCH = 16
"""Images of each worker."""
WARM = 3


def work(kind: str, steps: int) -> None:
    """One worker: prints seconds of a step (the median), without and with the exchange, and bytes."""
    torch.set_num_threads(1)
    group = LaunchedGroup(cuda=False)
    workers = DataParallel(group, asdict(Retrain.Config()) | {"gradients": kind})
    module = GraphModule(moved(lenet()))
    module.train()
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, 0.01)
    batches = list(workers.share(digits(2 * BATCH * (steps + WARM))).batches(BATCH))

    def step(network: Any, batch: Any) -> float:
        begun = time.perf_counter()
        feeds = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        output = network(**feeds)
        optimizer.zero_grad()
        cross_entropy(output, torch.from_numpy(batch.labels)).backward()
        optimizer.step()
        return time.perf_counter() - begun

    seconds = []
    for exchanging in (False, True):
        # DistributedDataParallel hooks into the weights as soon as it is made.
        network = workers.parallel(module) if exchanging else module
        group.total(1.0)
        seconds += group.most(statistics.median([step(network, batch) for batch in batches][WARM:]))
    if group.rank == 0:
        print(json.dumps([*seconds, workers.metrics()]))
    dist.destroy_process_group()


def measured(made: list[namespaces.Machine], kind: str, steps: int) -> tuple[float, float, dict[str, float]]:
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
    alone, shared, metrics = json.loads(said[0].splitlines()[-1])
    return alone, shared, metrics


def foretold(link: str, alone: float, ratio: float) -> float:
    """Seconds of a step. Fewer bytes take as long as all do on a link that is as much faster."""
    latency, bandwidth = parse_link(link)
    network, _ = open_network(MODELS / "lenet5-mnist" / "model.onnx", Question({}))
    arithmetic = curve(network.layers, "data", Machine(1.0), [1], BATCH, False).points[0].step.seconds
    machine = Machine(arithmetic / alone, latency, bandwidth * ratio)
    return curve(network.layers, "data", machine, [2], 2 * BATCH, False).points[0].step.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--links", nargs="*", default=["1Gb/s,1ms", "100Mb/s,10ms"])
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps)
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the namespaces are removed
    print("| link | gradients | sent a step | step ms | without exchange | foretold | foretold / measured |")
    print("|---|---|---|---|---|---|---|")
    for link in options.links:
        latency, bandwidth = parse_link(link)
        with namespaces.machines(2) as made, namespaces.delayed(made[0], made[1], 1e3 * latency):
            for machine in made:
                machine.shape(8e-6 * bandwidth)
            for kind in KINDS:
                alone, shared, metrics = measured(made, kind, options.steps)
                expected = foretold(link, alone, metrics["gradient_ratio"])
                cells = [f"{1e3 * seconds:.1f}" for seconds in (shared, alone, expected)]
                sent = f"{metrics['bytes_per_step'] / 1e3:,.0f} kB"
                print(
                    f"| {link} | {kind} | {sent} | {' | '.join(cells)} | {expected / shared:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
