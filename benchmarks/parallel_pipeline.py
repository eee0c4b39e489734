"""Pipelines of 2 and 4 workers against one process, over gloo on this machine: weights after five steps of SGD, and how
long workers wait for each other.

    python benchmarks/parallel_pipeline.py [--steps 20]

The network has residual blocks with strides, frozen batch normalization, depthwise and dilated convolutions, and images of
37 x 29. Floors: weights equal to 1e-12 in float64 and 5e-6 in float32, relative to the largest of their tensor. Idle
shares are of `--steps` steps on the network that is 96 x 96 wide, and have no floor: this machine may have fewer free
cores than there are workers.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
import torch.distributed as dist
from onnx import helper, numpy_helper

from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.job import RetrainJob
from onnx_lathe.runtime.training.loop.builtin import retrain
from onnx_lathe.runtime.training.parallel.grid import Pipeline
from onnx_lathe.runtime.training.parallel.pipeline import PipelineParallel
from onnx_lathe.runtime.training.parallel.strategy import Strategy
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup

CLASSES = 5
FLOORS = {"float64": 1e-12, "float32": 5e-6}
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One training: type, layout, samples of a step, and steps."""

    dtype: str
    stages: int
    micro: int
    schedule: str
    batch: int
    steps: int
    sides: tuple[int, int] = (37, 29)
    width: int = 8


class Network:
    """Writes a residual network node by node."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.random = np.dtype(dtype), np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(self.dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, shape: tuple[int, int, int], stride: int = 1, group: int = 1, gap: int = 1) -> str:
        """A convolution of `shape` (inputs, outputs, kernel) with frozen batch normalization."""
        first, last, kernel = shape
        scale = np.sqrt(2 * group / (first * kernel**2))
        drawn = self.random.standard_normal((last, first // group, kernel, kernel)) * scale
        x = self.node(
            "Conv",
            x,
            self.weight(drawn),
            strides=[stride] * 2,
            pads=[kernel // 2 * gap] * 4,
            group=group,
            dilations=[gap] * 2,
        )
        given = (np.ones(last), 0.1 * self.random.standard_normal(last), np.zeros(last), np.ones(last))
        return self.node("BatchNormalization", x, *map(self.weight, given))

    def block(self, x: str, first: int, last: int, stride: int) -> str:
        y = self.conv(self.node("Relu", self.conv(x, (first, last, 3), stride)), (last, last, 3))
        short = x if stride == 1 and first == last else self.conv(x, (first, last, 1), stride)
        return self.node("Relu", self.node("Add", y, short))

    def model(self, case: Case) -> onnx.ModelProto:
        width = case.width
        x = self.node("Relu", self.conv("x", (3, width, 7), 2))
        x = self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        x = self.block(self.block(x, width, width, 1), width, 2 * width, 2)
        y = self.conv(x, (2 * width, 2 * width, 3), group=2 * width)
        x = self.node("Add", x, self.conv(y, (2 * width, 2 * width, 3), gap=2))
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        drawn = self.random.standard_normal((CLASSES, 2 * width)) / np.sqrt(2 * width)
        y = self.node("Gemm", x, self.weight(drawn), self.weight(np.zeros(CLASSES)), transB=1)
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "residual",
            [helper.make_tensor_value_info("x", kind, ["N", 3, *case.sides])],
            [helper.make_tensor_value_info(y, kind, ["N", CLASSES])],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Noise(DataSource):
    labelled, fingerprint, description = True, "noise", "noise"

    def __init__(self, case: Case) -> None:
        random, self.count = np.random.default_rng(1), case.batch * case.steps
        self.images = random.standard_normal((self.count, 3, *case.sides)).astype(case.dtype)
        self.labels = random.integers(0, CLASSES, self.count)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count or 0, size):
            yield Batch({"x": self.images[start : start + size]}, self.labels[start : start + size])


def options(case: Case) -> dict[str, Any]:
    given = {"epochs": 1, "optimizer": "sgd", "rate": 0.01, "distill": 0.0, "batch": case.batch}
    return asdict(replace(Retrain.Config(), **given))


def train(case: Case, workers: Strategy) -> tuple[Values, dict[str, float]]:
    module, settings = GraphModule(Network(case.dtype).model(case)), options(case)
    job = RetrainJob(
        data=workers.share(Noise(case)),
        validation=None,
        teacher=None,
        epochs=1,
        device=torch.device("cpu"),
        step="retrain",
        settings=settings,
        seed=0,
        progress=lambda line: None,
        shaped=False,
        shape=lambda done: None,
        workers=workers,
    )
    retrain(module, job)
    return module.values(), job.metrics | workers.metrics()


def work(rank: int, port: int, case: Case, results: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.stages, "LOCAL_WORLD_SIZE": case.stages}
    os.environ.update({name: str(number) for name, number in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    group = LaunchedGroup(cuda=False)
    layout = Pipeline(1, case.stages, case.micro, case.schedule)
    found = train(case, PipelineParallel(group, options(case), layout))
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def pipelined(case: Case) -> tuple[Values, dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, store.port, case, results)) for rank in range(case.stages)
    ]
    for worker in workers:
        worker.start()
    found: tuple[Values, dict[str, float]] = results.get(timeout=900)
    for worker in workers:
        worker.join()
    return found


def apart(one: Values, other: Values) -> float:
    return max(float(np.abs(other[name] - value).max() / np.abs(value).max()) for name, value in one.items())


def equality() -> None:
    print("| type | stages | schedule | largest difference of a weight | floor |\n|---|---|---|---|---|")
    for dtype, floor in FLOORS.items():
        for stages in (2, 4):
            for schedule in ("1f1b", "gpipe"):
                case = Case(dtype, stages, 4, schedule, 8, 5)
                found = apart(train(case, Strategy())[0], pipelined(case)[0])
                print(f"| {dtype} | {stages} | {schedule} | {found:.1e} | {floor:.0e} |", flush=True)


def idle(steps: int) -> None:
    print(
        "\n| stages | micro-batches | idle | least: (S - 1) / (m + S - 1) | weights of each stage | sent at each cut per step |\n|---|---|---|---|---|---|"
    )
    for stages, micro in ((2, 2), (2, 4), (2, 8), (2, 16), (4, 8)):
        case = Case("float32", stages, micro, "1f1b", 16, steps, (96, 96), 32)
        told = pipelined(case)[1]
        held, sent = (
            ", ".join(f"{size / 1e3:.0f} kB" for name, size in told.items() if name.startswith(kind))
            for kind in ("weight_bytes[", "crossing_bytes[")
        )
        print(
            f"| {stages} | {micro} | {told['idle_share']:.0%} | {told['idle_share_least']:.0%} | {held} | {sent} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    equality()
    idle(parser.parse_args().steps)


if __name__ == "__main__":
    main()
