"""Workers that send gradients to a server, over gloo on this machine.

    python benchmarks/parallel_server.py [staleness backup killed accuracy rates] [--models lenet5 resnet20] [--workers 4] [--seeds 0,1,2]
        [--data-dir DIR] [--parts 4,2,1] [--momenta 0,0.9] [--server server,wait=4]

staleness  how old gradients are with 2 and 4 equal workers that sleep 20 ms a step; floor: within 0.3 of the workers less one
backup     4 gradients make an update and one worker is 0.5 s late at every step: 4 workers against 5 (late=drop). Floors: 2.5 times
           faster; each update has 4 members; weights equal those of one process with batches of 4 x 32 to 5e-6 of the largest of their tensor
killed     worker 2 of 3 is ended by SIGKILL at its 20th step; floors: all updates are made, the report names it, none waits for 1 s
accuracy   LeNet-5 and ResNet-20 without some channels, retrained by workers at their own pace against one process, with its rate divided
           by their number; floor: the mean over the seeds within 0.5 points
rates      the same with one process's rate divided by each of --parts and each of --momenta (the first beta), judged by training images
           10,000 to 20,000 in place of the test set; only if asked for, and no floor

Ends with 1 if a floor is missed.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.distributed as dist
from parallel_retrained import MODELS, ROOT, stored

from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.data import Batch
from onnx_lathe.runtime.data.source import IndexedSource, drawn
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.grid import Server as Policy
from onnx_lathe.runtime.training.parallel.server import Published, Server
from onnx_lathe.runtime.training.parallel.server_parallel import ServerParallel, WorkerParallel
from onnx_lathe.runtime.training.parallel.workers import Group
from onnx_lathe.runtime.training.session import train
from onnx_lathe.runtime.training.setup import TrainingSetup
from tests.support.parallel import worst
from tests.support.serving import Noting, replayed

LENET = ROOT / "models" / "lenet5-mnist" / "model.onnx"
BATCH, RATE = 32, 0.02
RATES = {"lenet5": 0.002, "resnet20": 0.0005}
"""Of one process; workers of a server take a part of it, as docs/training.md says."""
SECTIONS = ("staleness", "backup", "killed", "accuracy")
HELD_OUT = slice(10_000, 20_000)
"""Training images that none of these trainings takes."""


@dataclass(frozen=True)
class Case:
    """One training of so many updates; every worker sleeps `pause_s` a step, worker `late` 0.5 s more, and worker `dies`
    is killed at its 20th.
    """

    policy: Policy
    updates: int
    momentum: float = 0.0
    pause_s: float = 0.02
    late: int = 0
    dies: int = 0


class Digits(IndexedSource):
    """The repository's MNIST, again and again until there are `count`; `case` is what happens at worker `number`."""

    labelled, fingerprint, description = True, "digits", "digits"

    def __init__(self, count: int, case: Case | None = None, number: int = 0) -> None:
        with np.load(ROOT / "models" / "mnist.npz") as arrays:
            images, labels = (arrays[f"train/{name}"] for name in ("image", "labels"))
        self.images, self.labels = images[:, None].astype(np.float32) / 255, labels.astype(np.int64)
        self.count, self.case, self.number, self.step = count, case, number, 0

    def read(self, rows: np.ndarray) -> Batch:
        there = rows % len(self.images)
        return Batch({"image": self.images[there]}, self.labels[there])

    def identities(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.uint64)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for batch in super().batches(size, shuffle_seed):
            yield batch
            if shuffle_seed is not None and self.case is not None:
                self._suffer(self.case)

    def _suffer(self, case: Case) -> None:
        self.step += 1
        if case.dies == self.number and self.step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(case.pause_s + (0.5 if case.late == self.number else 0.0))


class Timed(Noting):
    """Notes when updates were made, too, and begins when all workers are there."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.moments: list[float] = []
        self.asked = 0

    def _answer(self) -> Published | None:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
        return super()._answer()

    def gradients(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        with self.changed:
            self.changed.wait_for(lambda: self.asked >= self.policy.workers)
        return super().gradients(optimizer)

    def publish(self) -> None:
        super().publish()
        self.moments.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Seconds between updates."""
        return list(np.diff(self.moments))


class Answering(ServerParallel):
    kind = Timed

    def server(self, module: GraphModule) -> Server:
        made = super().server(module)
        for number in range(1, self.policy.workers + 1):
            threading.Thread(target=made.serve, args=(store_at(self.port), number), daemon=True).start()
        return made

    port = 0


def store_at(port: int) -> Any:
    return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)


def options(case: Case) -> dict[str, Any]:
    given = {"optimizer": "sgd", "rate": RATE, "momentum": case.momentum, "distill": 0.0, "batch": BATCH}
    given |= {"epochs": 1, "decay": "constant", "warmup": 0.0, "clip": 0.0}
    return asdict(replace(Retrain.Config(), **given))


def samples(case: Case) -> int:
    return case.updates * case.policy.wait * BATCH


def work(number: int, port: int, case: Case) -> None:
    torch.set_num_threads(1)
    group = Group()
    group.rank = number
    strategy = WorkerParallel(store_at(port), options(case), number, group)
    train(
        TrainingSetup(Digits(samples(case), case, number), device="cpu"),
        onnx.load(LENET),
        options(case),
        None,
        strategy,
    )


def served(case: Case) -> tuple[dict[str, np.ndarray], dict[str, float], Timed]:
    """(weights, metrics, server) of a training whose workers are processes."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    numbers = range(1, case.policy.workers + 1)
    workers = [
        context.Process(target=work, args=(number, store.port, case), daemon=True) for number in numbers
    ]
    for worker in workers:
        worker.start()
    strategy = Answering(store_at(store.port), options(case), case.policy)
    strategy.port = store.port
    values, metrics = train(
        TrainingSetup(Digits(samples(case)), device="cpu"), onnx.load(LENET), options(case), None, strategy
    )
    assert isinstance(strategy.served, Timed)
    strategy.served.close()
    for worker in workers:
        worker.join(20)
    return values, metrics, strategy.served


def staleness() -> Iterator[str]:
    print(
        "| workers | updates | mean staleness | floor | largest | updates per second |\n|---|---|---|---|---|---|"
    )
    for workers in (2, 4):
        _, found, server = served(Case(Policy(workers), 600))
        mean = found["staleness_mean"]
        print(
            f"| {workers} | {found['updates']:.0f} | {mean:.2f} | {workers - 1} +- 0.3 | {max(server.staleness)} "
            f"| {found['updates_per_second']:.1f} |",
            flush=True,
        )
        if abs(mean - (workers - 1)) > 0.3:
            yield f"staleness of {workers} workers"


def backup() -> Iterator[str]:
    print(
        "| workers | of an update | ms per update | median | dropped | used of the late one |\n|---|---|---|---|---|---|"
    )
    times = []
    for workers in (4, 5):
        case = Case(Policy(workers, 4, "drop"), 60, momentum=0.9, pause_s=0.05, late=1)
        values, found, server = served(case)
        gaps = server.gaps()
        times.append(statistics.mean(gaps))
        used = sum(number == 1 for members in server.members.values() for number, _ in members)
        print(
            f"| {workers} | 4 | {1000 * times[-1]:.0f} | {1000 * statistics.median(gaps):.0f} "
            f"| {found['dropped_gradients']:.0f} | {used} |",
            flush=True,
        )
        sizes = {len(server.members[version]) for version in range(server.version)}
        if sizes != {4}:
            yield f"members of an update: {sizes}"
    apart = worst(values, as_one_process(case, server))
    print(f"\n{times[0] / times[1]:.1f} times faster with a backup worker (floor 2.5). ", end="")
    print(
        f"Replayed in one process with batches of 4 x 32: weights differ by {apart:.1e} (floor 5e-6).",
        flush=True,
    )
    if times[0] < 2.5 * times[1]:
        yield "backup: speed"
    if apart > 5e-6:
        yield "backup: replay"


def as_one_process(case: Case, server: Timed) -> dict[str, np.ndarray]:
    """Weights of one process that takes the same steps."""
    count, most = samples(case), max(server.pushed.values()) + 1
    sent = {
        number: list(islice(drawn(Digits(count), BATCH, count, np.random.default_rng((0, number))), most))
        for number in range(1, case.policy.workers + 1)
    }
    return replayed(onnx.load(LENET), server, lambda number, place: sent[number][place], RATE, case.momentum)


def killed() -> Iterator[str]:
    case = Case(Policy(3), 120, dies=2)
    _, found, server = served(case)
    used = Counter(number for members in server.members.values() for number, _ in members)
    longest = max(server.gaps())
    print("| updates | of workers 1, 2, 3 | lost | longest wait for an update |\n|---|---|---|---|")
    print(
        f"| {found['updates']:.0f} of {case.updates} | {used[1]}, {used[2]}, {used[3]} "
        f"| {'; '.join(server.losses())} | {longest:.2f} s |",
        flush=True,
    )
    if found["updates"] != case.updates or "lost[worker 2]" not in found or longest > 1:
        yield "killed"


def top1(name: str, data: Path, more: Sequence[str], seed: int, rate: float, options: str = "") -> float:
    """In percent, after the training by the command that users give."""
    folder, _, preprocess, taken, _ = MODELS[name]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "onnx_lathe", f"{ROOT}/models/{folder}/model.onnx"]
        command += ["--passes", f"{taken}, retrain(epochs=2, batch=64, seed={seed}, rate={rate}{options})"]
        command += ["--train", f"{data}:train", "--eval", f"{data}:eval", "--preprocess", preprocess]
        command += ["--target", "onnx", "--json", "--quiet", "--out", out, *more]
        threads = {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, env=os.environ | threads)
    return 100 * float(json.loads(run.stdout)["steps"][-1]["quality"]["top1"])


def accuracy(
    models: Sequence[str], workers: int, seeds: Sequence[int], directory: str | None
) -> Iterator[str]:
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| network | trained by | rate | {heads} | mean | points from one process |")
    print("|---" * (5 + len(seeds)) + "|", flush=True)
    launch = ("--launch", f"--nproc-per-node={workers + 1}", "--parallel", "server")
    with tempfile.TemporaryDirectory() as scratch:
        for name in models:
            data, alone = stored(name, Path(scratch), directory), 0.0
            for who, more in (("one process", ()), (f"{workers} workers of a server", launch)):
                rate = RATES[name] / (workers if more else 1)
                found = [top1(name, data, more, seed, rate) for seed in seeds]
                mean = statistics.mean(found)
                alone = mean if not more else alone
                row = " | ".join(f"{one:.2f}" for one in found)
                print(f"| {name} | {who} | {rate:g} | {row} | {mean:.2f} | {mean - alone:+.2f} |", flush=True)
                if mean < alone - 0.5:
                    yield f"accuracy of {name}"


def rates(given: argparse.Namespace, seeds: Sequence[int]) -> Iterator[str]:
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| network | trained by | rate | first beta | {heads} | mean |")
    print("|---" * (5 + len(seeds)) + "|", flush=True)
    launch = ("--launch", f"--nproc-per-node={given.workers + 1}", "--parallel", given.server)
    ways = [("one process", (), 1.0, "0.9")]
    for momentum in given.momenta.split(","):
        ways += [(given.server, launch, float(part), momentum) for part in given.parts.split(",") if part]
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.models:
            data = stored(name, Path(scratch), given.data_dir, HELD_OUT)
            for who, more, part, momentum in ways:
                rate = RATES[name] / part
                found = [top1(name, data, more, seed, rate, f", momentum={momentum}") for seed in seeds]
                row = " | ".join(f"{one:.2f}" for one in found)
                mean = statistics.mean(found)
                print(f"| {name} | {who} | {rate:g} | {momentum} | {row} | {mean:.2f} |", flush=True)
    yield from ()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "rates", []], default=[])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data-dir")
    parser.add_argument("--parts", default="4,2,1")
    parser.add_argument("--momenta", default="0,0.9")
    parser.add_argument("--server", default="server")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    runs = {
        "staleness": staleness,
        "backup": backup,
        "killed": killed,
        "accuracy": lambda: accuracy(given.models, given.workers, seeds, given.data_dir),
        "rates": lambda: rates(given, seeds),
    }
    missed = []
    for section in given.sections or SECTIONS:
        print(f"\n## {section}\n", flush=True)
        missed += list(runs[section]())
    print(f"\nfloors missed: {', '.join(missed) or 'none'}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
