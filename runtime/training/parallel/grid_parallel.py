"""A training on a grid of workers: groups that have their own samples, and in each group workers that share the layers.

`place` rewrites the module for this worker; what a hook does with it then stays the same. Weights that every worker has
whole are DistributedDataParallel's. The gradient of a part of a weight is summed over the workers that hold the same
part, and divided by the number of all workers; see moves.py for why that is the gradient of the one-process step.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import Share
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.runtime.torch_bridge.members import Processes
from onnx_lathe.runtime.training.loop.precision import gradient_norm
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.moves import Traffic
from onnx_lathe.runtime.training.parallel.placer import Placer, split_by
from onnx_lathe.runtime.training.parallel.rules.table import Choose, Mesh
from onnx_lathe.runtime.training.parallel.strategy import DataParallel, SharedState
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from onnx_lathe.runtime.training.state import JobState

SAMPLES = 2
"""So many show the sizes of all tensors: with one, an axis of samples could not be told from one of size 1."""


class GridParallel(DataParallel):
    """`grid.data` groups of `grid.parts` workers, of which those with following ranks are one group.

    A batch of B, as a hook asks for it, is the batch of one group. Raises as DataParallel.
    """

    def __init__(self, group: LaunchedGroup, settings: Mapping[str, Any], grid: Grid) -> None:
        super().__init__(group, settings)
        self.settings = settings
        self.use(grid)
        self.chooses: Sequence[Choose] = [split_by(grid.split)] * 2
        """For the module, and for the original one."""
        self.layers = Traffic()
        """What is sent of activations."""
        self.placer: Placer | None = None
        self.steps = 0
        self.whole_bytes = 0

    def use(self, grid: Grid) -> None:
        """Arranges the workers so; all of them have to call it."""
        self.grid = grid
        device = init_device_mesh(
            self.group.place.type, (grid.data, grid.parts), mesh_dim_names=("data", "model")
        )
        self.mesh = Mesh(
            Processes(device.get_group("data")), Processes(device.get_group("model")), Processes()
        )

    def place(
        self,
        module: GraphModule,
        data: DataSource,
        shaped: bool,
        progress: Callable[[str], None],
        teacher: GraphModule | None = None,
        saved: JobState | None = None,
    ) -> None:
        if module.per_call:
            raise PassError(
                "--parallel: each sample is a call of its own size, so that no layer can be split; share out samples (data=)"
            )
        sample = sample_of(module, data)
        self.whole_bytes = _bytes(module.parameters())
        # A pass that acts while training runs looks at whole weights, and a scaled loss is to overflow at all workers alike.
        parts = not shaped and self.settings["precision"] != "float16"
        was = module.training
        self.placer = Placer(module.eval(), sample, self.mesh, self.chooses[0], parts, self.layers).place()
        module.train(was)
        if teacher is not None and not teacher.per_call:
            # nothing that it sends is counted: it has no gradients
            Placer(teacher, sample_of(teacher, data), self.mesh, self.chooses[1]).place()
        progress(self._said(self.placer))

    def _said(self, placer: Placer) -> str:
        split = sum(decision.shared for decision in placer.decisions)
        gathered = [decision for decision in placer.decisions if decision.gathered]
        kinds = sorted({decision.op for decision in gathered})
        how = "" if self.grid.split == "auto" else f" by {self.grid.split}"
        what = f"{split} steps split{how} among {self.grid.parts} workers"
        return f"{what}, {len(gathered)} gathered ({', '.join(kinds)})" if gathered else what

    def parallel(self, module: nn.Module) -> Callable[..., Any]:
        parts = module.parts() if isinstance(module, GraphModule) else {}
        for parameter in parts.values():
            parameter.register_post_accumulate_grad_hook(self._reduce)
        # DistributedDataParallel compares "module.parameter", which of a parameter of the module itself is ".parameter".
        # Without this it would average parts of a weight that belong to different rows of it.
        names = [name for part in parts for name in (part, f".{part}")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
        held = {id(parameter) for parameter in parts.values()}
        module.register_forward_pre_hook(self._count)
        self.layers.sent.clear()  # a memory budget was tried out
        if all(id(one) in held or not one.requires_grad for one in module.parameters()):
            return module
        return super().parallel(module)

    def _reduce(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad /= self.size
            self.mesh.data.add(parameter.grad)
            size = self.traffic.ring(parameter.grad.nbytes, self.grid.data)
            self.traffic.sent_bytes += size
            self.traffic.full_bytes += size

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self.steps += module.training and torch.is_grad_enabled()

    def share(self, source: DataSource) -> DataSource:
        return Share(source, self.mesh.data.rank, self.grid.data, self.group.alike)

    def total(self, *values: float) -> list[float]:
        """The workers of a group have the same samples, which count once."""
        return [value / self.grid.parts for value in self.group.total(*values)]

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        parts, given = self._parts(), list(parameters)
        own = gradient_norm(one for one in given if id(one) in parts).to(self.group.place)
        whole = gradient_norm(one for one in given if id(one) not in parts).to(self.group.place)
        squares = own.square().reshape(1)
        self.mesh.model.add(squares)
        return (squares[0] + whole.square()).sqrt()

    def _parts(self) -> set[int]:
        return set() if self.placer is None else {id(one) for one in self.placer.module.parts().values()}

    def state(self, state: JobState) -> JobState:
        return GroupState(state, self.group, self.mesh, self.grid)

    def metrics(self) -> dict[str, float]:
        """Beside those of gradients: bytes that this worker sends of activations in a step, by kind of move; bytes of
        the weights that it has, and of all; how many steps are split, and gathered.
        """
        if self.placer is None:
            return super().metrics()
        found = super().metrics()
        for (kind, _), size in self.layers.sent.items():
            name = f"{kind}_bytes_per_step"
            found[name] = found.get(name, 0.0) + size / max(self.steps, 1)
        decisions = self.placer.decisions
        return found | {
            "groups": float(self.grid.data),
            "own_weight_bytes": float(_bytes(self.placer.module.parameters())),
            "weight_bytes": float(self.whole_bytes),
            "split_steps": float(sum(decision.shared for decision in decisions)),
            "gathered_steps": float(sum(decision.gathered for decision in decisions)),
        }


class GroupState(SharedState):
    """Holds the states of all workers of a group, whose weights and moments may be parts. A file of any group is good
    for all.
    """

    def __init__(self, own: JobState, group: LaunchedGroup, mesh: Mesh, grid: Grid) -> None:
        super().__init__(own, group)
        self.mesh = mesh
        self.identity += f" {grid}"  # other workers have other parts

    def stored(self) -> dict[str, Any] | None:
        found = super().stored()
        if found is None:
            return None
        content = found["state"]["workers"][self.mesh.model.rank].numpy().tobytes()
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return found | {"state": state}

    def save(self, state: dict[str, Any]) -> None:
        self.check(state)
        content = io.BytesIO()
        torch.save(state, content)
        mine = torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)
        sizes = torch.zeros(self.mesh.model.size, dtype=torch.int64, device=self.group.place)
        sizes[self.mesh.model.rank] = len(mine)
        self.mesh.model.add(sizes)
        sent = [mine.to(self.group.place)] * self.mesh.model.size
        found = self.mesh.model.swap(sent, sizes.tolist())
        super().save({"workers": [one.cpu() for one in found]})


def sample_of(module: GraphModule, data: DataSource) -> dict[str, Tensor]:
    """A few of the samples that it is trained on."""
    batch = next(iter(data.batches(module.fixed_batch or SAMPLES)))
    return {name: to_torch(array) for name, array in batch.inputs.items()}


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)
