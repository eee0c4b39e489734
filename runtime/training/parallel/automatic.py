"""`--parallel auto`: the workers of a group share each layer in the way that takes least time, or samples alone.

The cost model (choice.py) proposes groups and ways, from arithmetic at the shapes that a worker would have and from the
link, both measured as the training starts, with memory as a constraint. Then ten steps are timed of what it proposes and
ten of data parallelism, in turn, on copies of the module; the faster stays. `batch` is each worker's whatever is chosen,
so that the steps of the training do not depend on it.
Source: Jia, Zaharia and Aiken, "Beyond Data and Model Parallelism for Deep Neural Networks", MLSys 2019; Dryden et al.,
"Channel and Filter Parallelism for Large-Scale CNN Training", SC 2019.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.members import Processes
from onnx_lathe.runtime.training.parallel import link
from onnx_lathe.runtime.training.parallel.costs import Machine
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel, sample_of
from onnx_lathe.runtime.training.parallel.layers import Network
from onnx_lathe.runtime.training.parallel.proposals import (
    Proposal,
    as_planned,
    explained,
    groups_of,
    network_of,
    propose,
)
from onnx_lathe.runtime.training.parallel.trials import Job, Larger, Trial, timed
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from onnx_lathe.runtime.training.state import JobState

_WAYS = ("whole", "height", "filter", "channel", "local")
"""Ways of layers with weights that `choose` chooses among."""
Ways = Sequence[Sequence[str]]
"""Of each layer of the module, and of the original one if there is one."""
Measured = Callable[[LaunchedGroup, Sequence[Network], int, int], Machine]
Timed = Callable[[Sequence[Trial], link.Most], list[float]]


class Decision(NamedTuple):
    grid: Grid
    ways: Ways


def machine_of(group: LaunchedGroup, networks: Sequence[Network], most_parts: int, batch: int) -> Machine:
    """What this worker's part of each layer takes, and the link, by measuring them. All workers have to call it."""
    latency, bandwidth = link.link(Processes(), group.place, group.most)
    layers = [layer for network in networks for layer in network.layers]
    cuts = [
        (one.shared, way)
        for one in groups_of(group.size, most_parts, batch)
        for way in (["data"] if one.parts == 1 else _WAYS)
    ]
    rate = link.rates(layers, cuts, group.place, group.most)
    return Machine(rate, latency, bandwidth, link.free_bytes(group.place, group.neighbours, group.most))


class AutoParallel(GridParallel):
    """Groups of up to `grid.parts` workers; of how many `place` decides, and until then each is its own.

    `measure` finds what the machines are, and `time` how many seconds a step of each of several trainings takes; both say
    the same to all workers. Raises as DataParallel.
    """

    def __init__(
        self,
        group: LaunchedGroup,
        settings: Mapping[str, Any],
        grid: Grid,
        measure: Measured = machine_of,
        time: Timed = timed,
    ) -> None:
        super().__init__(group, settings, Grid(group.size))
        self.most_parts, self.measure, self.time = grid.parts, measure, time
        self.found: dict[str, float] = {}
        self.ways: Ways = ()

    def share(self, source: DataSource) -> DataSource:
        share = super().share(source)
        return share if self.grid.parts == 1 else Larger(share, self.grid.parts)

    def place(
        self,
        module: GraphModule,
        data: DataSource,
        shaped: bool,
        progress: Callable[[str], None],
        teacher: GraphModule | None = None,
        saved: JobState | None = None,
    ) -> None:
        job = Job(module, teacher, data, shaped, progress)
        if module.per_call:
            progress("auto: each sample is a call of its own, so workers share samples alone")
            return
        networks = [network_of(one, sample_of(one, data)) for one in (module, teacher) if one is not None]
        decision = self._earlier(saved, networks) or self._decided(job, networks)
        self._keep(saved, decision)
        if decision.grid.parts > 1:
            self.use(decision.grid)
            self.ways = decision.ways
            self.chooses = _chooses(networks, decision.ways)
            super().place(module, data, shaped, progress, teacher)

    def _decided(self, job: Job, networks: Sequence[Network]) -> Decision:
        batch = self.settings["batch"] * self.size
        machine = self.measure(self.group, networks, self.most_parts, batch)
        self.found |= {"link_latency_seconds": machine.latency, "link_bytes_per_second": machine.bandwidth}
        job.progress(
            f"auto: a message takes {1e6 * machine.latency:.3g} us, and a worker sends {machine.bandwidth / 1e6:.3g} MB/s "
            f"and has {machine.memory / 1e9:.3g} GB"
        )
        groups = groups_of(self.size, self.most_parts, batch)
        proposals = propose(networks[0].layers, groups, machine)
        best = min(proposals, key=lambda one: one.seconds)
        for line in explained(best, machine, batch):
            job.progress(line)
        for one in proposals:
            job.progress(f"auto: by the model a step takes {1e3 * one.seconds:.3g} ms {_named(one.grid)}")
        samples_alone = Decision(Grid(self.size), ())
        if best.grid.parts == 1:
            job.progress("auto: workers share samples alone")
            return samples_alone
        own = [one for one in groups if one.parts == best.grid.parts]
        rest = [min(propose(one.layers, own, machine), key=_seconds).ways for one in networks[1:]]
        decision = Decision(best.grid, [best.ways, *rest])
        if proposals[0].grid.parts > 1:
            job.progress("auto: samples alone take more memory than there is, and are not tried")
            return decision
        return decision if self._is_faster(job, networks, decision) else samples_alone

    def _is_faster(self, job: Job, networks: Sequence[Network], decision: Decision) -> bool:
        """Than data parallelism, in steps that are timed."""
        chooses = _chooses(networks, decision.ways)
        try:
            trials = [
                Trial(job, self.group, self.settings, grid, chooses)
                for grid in (Grid(self.size), decision.grid)
            ]
        except TypeError as error:
            job.progress(
                f"auto: the module cannot be copied to be timed ({error}); workers share samples alone"
            )
            return False
        alone, together = self.time(trials, self.group.most)
        faster = together < alone
        self.found |= {"step_seconds_data": alone, "step_seconds_auto": together}
        job.progress(
            f"auto: ten steps each took, in the median, {1e3 * together:.3g} ms {_named(decision.grid)} and "
            f"{1e3 * alone:.3g} ms by samples alone; {'the former' if faster else 'the latter'} stays"
        )
        return faster

    # ---- an interrupted training goes on as it began

    def _earlier(self, saved: JobState | None, networks: Sequence[Network]) -> Decision | None:
        content = b""
        if saved is not None and saved.path.exists() and _beside(saved).exists():
            content = _beside(saved).read_bytes()
        text = next((one for one in self.group.gathered(content) if one), None)
        try:
            identity, data, parts, ways = json.loads(text or b"null")
            grid = Grid(data, "auto" if parts > 1 else "", parts)
        except (TypeError, ValueError):
            return None
        if saved is None or identity != saved.identity:  # of another step
            return None
        sizes = [len(network.layers) for network in networks]
        fits = data * parts == self.size and parts <= self.most_parts
        return Decision(grid, ways) if fits and [len(one) for one in ways] in (sizes, []) else None

    def _keep(self, saved: JobState | None, decision: Decision) -> None:
        if saved is not None and self.group.local == 0:
            grid = decision.grid
            text = json.dumps([saved.identity, grid.data, grid.parts, decision.ways])
            with replacing(_beside(saved)) as file:
                file.write(text.encode())

    def state(self, state: JobState) -> JobState:
        found = super().state(state)
        found.identity += f" {[list(one) for one in self.ways]}"  # parts are of these
        return found

    def metrics(self) -> dict[str, float]:
        """With the link, the seconds of a step that were measured of both, and the number of groups."""
        return super().metrics() | self.found | {"groups": float(self.grid.data)}


def _beside(saved: JobState) -> Path:
    return saved.path.with_name(f"{saved.path.name}.auto")


def _chooses(networks: Sequence[Network], ways: Ways) -> list[Any]:
    return [as_planned(network, one) for network, one in zip(networks, ways, strict=True)]


def _seconds(one: Proposal) -> float:
    return one.seconds


def _named(grid: Grid) -> str:
    if grid.parts == 1:
        return "by samples alone"
    return f"in {grid.data} {'group' if grid.data == 1 else 'groups'} of {grid.parts} workers"
