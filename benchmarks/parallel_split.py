"""Layers that several workers share (`--parallel`), against one process and against theory.

    python benchmarks/parallel_split.py [equality] [bytes] [activations] [weights] [cpu] [auto]

equality: the weights after five steps of SGD, largest difference relative to the largest of a tensor. bytes: what each worker
sends of activations in a step, counted and by formula. activations: what is kept for the backward pass. weights: what a worker
holds. cpu: processor time of one worker's step, the best of eight, which does not depend on what else the machine does.
auto: what `--parallel auto` measures and keeps of two workers, for a network of convolutions and for one of large matrix
products; times of steps are wall clock, in turn, and have no floor but that the faster is kept.
Workers are processes that gloo connects, of one thread each. Ends with 1 if a floor is missed.
"""

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.automatic import AutoParallel
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support.parallel import images, plain, residual, trained, worst
from tests.support.training import options

LIMIT_S = 600.0
STEPS, TIMES, ROUNDS = 5, 8, 3
SIZE, BATCH, WIDTHS, CLASSES = 96, 8, (32, 32, 64, 64), 10
FLOORS = {"float64": 1e-12, "float32": 5e-6}
SPLITS = ("height", "width", "filter", "channel")
EQUAL = [
    *[(how, size, 2, dtype, False) for dtype in FLOORS for size in (2, 4) for how in SPLITS],
    *[(how, size, 2, dtype, True) for dtype in FLOORS for size in (2, 4) for how in ("height", "width")],
    ("height", 4, 4, "float64", False),
    ("filter", 4, 4, "float64", False),
]
"""(split, processes, workers of a group, type, whether the images are flattened)."""
AUTOMATIC = {
    "convolutions, 96 x 96": lambda: plain("float32", SIZE, WIDTHS),
    "fully connected, 4096 wide": lambda: plain("float32", 32, (8, 8), flat=4096),
}


class Samples(DataSource):
    labelled, fingerprint, description = True, "samples", "samples"

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.count = x, len(x)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Any:
        yield Batch({"x": self.x[:size].numpy()})


class Training:
    """The module, its network and its optimizer, placed on the workers if there are several."""

    def __init__(self, model: onnx.ModelProto, x: torch.Tensor, workers: GridParallel | None) -> None:
        self.module = GraphModule(model, train_normalization=True)
        if workers is not None:
            workers.place(self.module, Samples(x), False, lambda message: None)
        self.module.train()
        self.network: Callable[..., Any] = self.module if workers is None else workers.parallel(self.module)
        self.optimizer = torch.optim.SGD(
            [one for one in self.module.parameters() if one.requires_grad],
            lr=0.01,
            momentum=0.9,
            nesterov=True,
        )

    def step(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.network(x=x), labels).backward()
        self.optimizer.step()


def kept_bytes(training: Training, x: torch.Tensor) -> int:
    """Of distinct tensors that the forward pass keeps for the backward pass, but for weights and samples."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = training.module(x=x)
    own = {one.untyped_storage().data_ptr() for one in (x, *training.module.parameters())}
    del output
    return sum(size for place, size in found.items() if place not in own)


# ---- in the workers
# -------------------------------------------------------------------------------------------------


def equal(workers: GridParallel, dtype: str, flat: bool) -> Any:
    groups = workers.mesh.data
    model = residual(dtype, flat)
    batches = images(model, STEPS, 4 * groups.size)
    training = Training(model, batches[0][0]["x"], workers)
    for inputs, labels in batches:
        training.step(inputs["x"].chunk(groups.size)[groups.rank], labels.chunk(groups.size)[groups.rank])
    return training.module.values()


def measured(workers: GridParallel | None) -> dict[str, float]:
    """Bytes per step, bytes kept, weights held, and processor seconds of a step."""
    ((inputs, labels),) = images(plain("float32", SIZE, WIDTHS), 1, BATCH)
    x = inputs["x"]
    training = Training(plain("float32", SIZE, WIDTHS), x, workers)
    training.step(x, labels)
    counted = {} if workers is None else workers.metrics()
    times = []
    for _ in range(TIMES):
        begin = time.process_time()
        training.step(x, labels)
        times.append(time.process_time() - begin)
    return counted | {"kept": float(kept_bytes(training, x)), "cpu": min(times)}


def automatic(workers: AutoParallel, name: str) -> dict[str, float]:
    """What was measured, and how many groups there are in the end."""
    model = AUTOMATIC[name]()
    ((inputs, _),) = images(model, 1, BATCH * workers.size)
    module = GraphModule(model)
    workers.place(module, Samples(inputs["x"]), False, lambda message: None)
    return workers.metrics()


def _worker(
    rank: int, port: int, folder: str, size: int, how: str, parts: int, given: tuple[Any, ...]
) -> None:
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    group = LaunchedGroup(cuda=False)
    grid, settings = Grid(size // parts, how, parts), options(optimizer="sgd", batch=BATCH)
    if how == "auto":
        result: Any = automatic(AutoParallel(group, settings, grid), *given)
    else:
        workers = GridParallel(group, settings, grid)
        result = equal(workers, *given) if given else measured(workers)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def together(size: int, how: str, parts: int, *given: Any) -> list[Any]:
    """What each of `size` workers found. Ends them, and this, if they take longer than LIMIT_S."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = mp.spawn(_worker, (store.port, folder, size, how, parts, given), size, join=False)
        end = time.monotonic() + LIMIT_S
        while not context.join(timeout=max(end - time.monotonic(), 0.1)):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                raise SystemExit(f"{size} workers by {how}: not done in {LIMIT_S:.0f} s")
        return [pickle.loads((Path(folder) / f"{rank}.pickle").read_bytes()) for rank in range(size)]


# ---- theory
# ---------------------------------------------------------------------------------------------------------


def layers() -> list[tuple[int, int, int]]:
    """(channels, filters, side) of each 3 x 3 convolution of the network."""
    found, channels, side = [], 3, SIZE
    for number, filters in enumerate(WIDTHS):
        found.append((channels, filters, side))
        channels, side = filters, side // (1 + number % 2)
    return found


def theory(how: str, workers: int, rank: int) -> dict[str, float]:
    """Bytes that a worker sends of activations, forward and backward, and ("") of gradients of weights. The first layer reads
    the samples, which all have; weights that are cut are nobody else's.
    """
    inner, last = layers()[1:], WIDTHS[-1]
    ring = 2 * (workers - 1) / workers
    vectors = sum(WIDTHS) + CLASSES
    matrices = sum(9 * channels * filters for channels, filters, _ in layers()) + last * CLASSES
    if how == "height":
        borders = 1 if rank in (0, workers - 1) else 2
        halo = sum(side * channels for channels, _, side in inner) * BATCH * 4 * borders
        return {"halo": 2 * halo, "sum": 2 * ring * last * BATCH * 4, "": ring * (matrices + vectors) * 4}
    if how == "filter":
        inputs = sum(channels * side * side for channels, _, side in inner) + last + CLASSES
        return {"gather": 2 * (workers - 1) / workers * inputs * BATCH * 4, "": 0.0}
    outputs = sum(filters * side * side for _, filters, side in layers()) + CLASSES
    return {"sum": 2 * ring * outputs * BATCH * 4, "": ring * vectors * 4}


# ---- tables
# ---------------------------------------------------------------------------------------------------------


def equality() -> bool:
    print(
        "| processes | split | type | network | largest difference of a weight | floor |\n|---|---|---|---|---|---|"
    )
    fine = True
    for how, size, parts, dtype, flat in EQUAL:
        model = residual(dtype, flat)
        alone, _, _ = trained(model, images(model, STEPS, 4 * size // parts))
        apart = max(worst(values, alone) for values in together(size, how, parts, dtype, flat))
        fine &= apart <= FLOORS[dtype]
        network = "residual, flattened" if flat else "residual"
        print(
            f"| {size // parts} x {parts} | {how} | {dtype} | {network} | {apart:.1e} | {FLOORS[dtype]:.0e} |"
        )
    return fine


def counted_bytes() -> bool:
    print("| workers | split | worker | kind | counted | by formula |\n|---|---|---|---|---|---|")
    fine = True
    for how, size in (("height", 2), ("height", 4), ("filter", 2), ("channel", 2)):
        for rank, found in enumerate(together(size, how, size)):
            for kind, wanted in theory(how, size, rank).items():
                sent = found.get(f"{kind}_bytes_per_step" if kind else "bytes_per_step", 0.0)
                fine &= sent == wanted
                print(f"| {size} | {how} | {rank} | {kind or 'gradients'} | {sent:,.0f} | {wanted:,.0f} |")
    return fine


def activations() -> bool:
    alone = measured(None)["kept"]
    print(f"One process keeps {alone / 1e6:.2f} MB.\n")
    print("| workers | split | largest kept by one | times an even share | floor |\n|---|---|---|---|---|")
    fine = True
    for how, size, floor in (
        ("height", 2, 1.10),
        ("height", 4, 1.15),
        ("filter", 2, None),
        ("channel", 2, None),
    ):
        kept = max(found["kept"] for found in together(size, how, size))
        share = kept * size / alone
        fine &= floor is None or share <= floor
        print(f"| {size} | {how} | {kept / 1e6:.2f} MB | {share:.3f} | {floor or '-'} |")
    return fine


def weights() -> bool:
    print("| workers | split | held by one, of all | floor |\n|---|---|---|---|")
    fine = True
    for how, size, floor in (("height", 2, None), ("filter", 2, 0.51), ("channel", 2, None)):
        held = max(one["own_weight_bytes"] / one["weight_bytes"] for one in together(size, how, size))
        fine &= floor is None or held <= floor
        print(f"| {size} | {how} | {held:.3f} | {floor or '-'} |")
    return fine


def cpu() -> bool:
    split = ("height", "filter", "channel")
    alone, times = float("inf"), dict.fromkeys(split, float("inf"))
    for _ in range(ROUNDS):  # in turn, since other work may come and go
        alone = min(alone, measured(None)["cpu"])
        for how in split:
            times[how] = min(times[how], max(found["cpu"] for found in together(2, how, 2)))
    print(
        "| workers | split | processor time of one worker's step | of one process | floor |\n|---|---|---|---|---|"
    )
    print(f"| 1 | - | {1e3 * alone:.0f} ms | 1 | - |")
    fine = True
    for how, floor in (("height", 0.75), ("filter", None), ("channel", None)):
        worker = times[how]
        fine &= floor is None or worker / alone <= floor
        print(f"| 2 | {how} | {1e3 * worker:.0f} ms | {worker / alone:.2f} | {floor or '-'} |")
    return fine


def auto() -> bool:
    print(
        "| network | message | bandwidth | step by samples alone | step as proposed | kept |\n|---|---|---|---|---|---|"
    )
    fine = True
    for name in AUTOMATIC:
        found = together(2, "auto", 2, name)[0]
        link = (
            f"{1e6 * found['link_latency_seconds']:.0f} us | {found['link_bytes_per_second'] / 1e6:.0f} MB/s"
        )
        kept = "samples alone" if found["groups"] == 2 else "layers shared"
        if "step_seconds_auto" not in found:
            print(f"| {name} | {link} | not timed | the model proposes samples alone | {kept} |")
            continue
        alone, proposed = found["step_seconds_data"], found["step_seconds_auto"]
        fine &= (proposed < alone) == (found["groups"] == 1)
        print(f"| {name} | {link} | {1e3 * alone:.1f} ms | {1e3 * proposed:.1f} ms | {kept} |")
    return fine


SECTIONS = {
    "equality": equality,
    "bytes": counted_bytes,
    "activations": activations,
    "weights": weights,
    "cpu": cpu,
    "auto": auto,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; none is all")
    chosen = parser.parse_args().sections or list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}; give {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    missed = []
    for name in chosen:
        print(f"\n## {name}\n")
        if not SECTIONS[name]():
            missed.append(name)
    print(f"\nfloors missed: {', '.join(missed) or 'none'}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
