"""`--parallel "pipeline=4,micro=8"`: the steps of the graph are shared out among the workers of a pipeline,
and the samples of a batch among several pipelines.

While the built-in hook trains, a worker's module has the newest weights of its own stage alone. All of them
are gathered where the whole module is needed: to score it, to save it, for a pass that acts while training
runs, and in the end.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import Share
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.loop.lesson import Lesson
from onnx_lathe.runtime.training.parallel.grid import Pipeline
from onnx_lathe.runtime.training.parallel.schedule import Pipelined, Place
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup


class PipelineParallel(DataParallel):
    """Every worker trains the weights of one stage, with the samples of one pipeline."""

    def __init__(self, group: LaunchedGroup, settings: Mapping[str, Any], layout: Pipeline) -> None:
        super().__init__(group, settings)
        self.layout = layout
        self.data_rank, stage = divmod(group.rank, layout.stages)
        mesh = init_device_mesh(
            group.place.type, (layout.data, layout.stages), mesh_dim_names=("data", "pipeline")
        )
        self.place = Place(
            stage,
            layout.stages,
            mesh.get_group("pipeline"),
            layout.data,
            mesh.get_group("data"),
            group.place,
            group.most,
        )
        self.batch = int(settings["batch"])
        self.pipelined: Pipelined | None = None
        self.keeps_whole = False

    def parallel(self, module: nn.Module) -> nn.Module:
        return module

    def pipeline(self, module: GraphModule, lesson: Lesson, shaped: bool) -> Pipelined:
        self.keeps_whole = shaped
        layout = self.layout
        self.pipelined = Pipelined(module, lesson, self.place, self.batch, layout.micro, layout.schedule)
        self._shed()
        return self.pipelined

    def share(self, source: DataSource) -> DataSource:
        return Share(source, self.data_rank, self.layout.data, self.group.alike)

    def judged(self, source: DataSource) -> DataSource:
        return Share(source, self.rank, self.size, self.group.alike)

    def norm(self, own: Tensor) -> Tensor:
        return own if self.pipelined is None else self.pipelined.norm(own)

    def gather(self) -> None:
        if self.pipelined is not None:
            self.pipelined.gather()

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.gather()
        yield
        self._shed()

    def _shed(self) -> None:
        # What a pass has the module read in place of weights lies where the weights do.
        if self.pipelined is not None and not self.keeps_whole:
            self.pipelined.shed()

    def merged(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        mine = io.BytesIO()
        torch.save(optimizer["state"] if self.data_rank == 0 else {}, mine)
        state: dict[int, Any] = {}
        for part in self.group.gathered(mine.getvalue()):
            state |= torch.load(io.BytesIO(part), map_location="cpu", weights_only=True)
        return optimizer | {"state": state}

    def metrics(self) -> dict[str, float]:
        found = {"workers": float(self.size)}
        if self.pipelined is not None:
            found |= self.pipelined.traffic.metrics() | self.pipelined.metrics()
        return found


def pipeline_parallel(group: LaunchedGroup, job: Mapping[str, Any], layout: Pipeline) -> PipelineParallel:
    """The strategy of a job that `launch` wrote. Raises UsageError for options that do not go with it."""
    settings, text = job["settings"], job["parallel"]
    batch, micro = settings["batch"], layout.micro

    def refuse(why: str) -> None:
        raise UsageError(f"--parallel '{text}': {why}")

    if job["hook"] is not None:
        refuse(
            "a hook of your own (--retrain) runs forward and backward pass by itself, which here are the schedule's; "
            "leave --retrain out, or the pipeline"
        )
    if job["memory"] is not None:
        refuse(
            "--memory computes again what one process keeps of a whole batch, and a stage keeps micro-batches; "
            "give more of them with micro=, or leave --memory out"
        )
    if settings["normalization"] == "train":
        refuse(
            "normalization='train' takes the statistics of a whole batch, and a stage sees a micro-batch; "
            "leave normalization out, or the pipeline"
        )
    if settings["gradients"] != "full":
        refuse(f"gradients='{settings['gradients']}' compresses what pipelines do not send; leave it out")
    if batch % micro:
        refuse(
            f"batch={batch} cannot be divided into {micro} micro-batches; "
            f"give batch={max(1, round(batch / micro)) * micro}, or another micro="
        )
    if layout.schedule == "1f1b" and micro < layout.stages:
        refuse(
            f"1f1b needs a micro-batch for each of {layout.stages} stages; "
            f"give micro={layout.stages} or more, or schedule=gpipe"
        )
    return PipelineParallel(group, settings, layout)
