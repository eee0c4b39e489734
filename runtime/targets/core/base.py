"""What a target is: it says whether it can build here, what it will not take of a model, and builds."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.placement import Placement

Progress = Callable[[str], None]


def option(
    default: Any, help: str, unit: str = "", choices: tuple[str, ...] = (), low: float | None = None
) -> Any:
    """A field of a target's Config. choices: the values that it takes, if these can be listed; low: the least one."""
    return field(default=default, metadata={"help": help, "unit": unit, "choices": choices, "low": low})


Feeds = Callable[[Any, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Artifact:
    """What a build wrote. The first path is what the device loads; `details` are plain data for the report;
    `notes` are warnings, one line each; `facts` are lines of the report that are none.
    """

    paths: tuple[Path, ...]
    size_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reopened:
    """A finished file that runs on this machine. `session`: as `Target.open` gives one; `library`: what runs it, with
    its version; `size_bytes`: of all files that belong to it; `device`: what it runs on, if not this processor.
    """

    session: Any
    library: str
    size_bytes: int
    device: str = ""


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NOT_QUANTIZED = "it is not quantized"


@dataclass(frozen=True)
class LayerVerdict:
    """Whether a target runs one layer with a weight in INT8. `reason`: why it does not, or not where it was asked to."""

    node: str
    op: str
    int8: bool
    reason: str = ""


def check_choices(options: Any) -> None:
    """Raises UsageError for an option whose value is none of its choices."""
    for one in fields(options):
        value, choices = getattr(options, one.name), one.metadata.get("choices", ())
        if choices and value not in choices:
            *others, last = choices
            raise UsageError(f"option {one.name} takes {', '.join(others)} or {last}, not '{value}'")


class Target:
    """Base of every target. An instance keeps no state: options come with each call of `build`."""

    name: ClassVar[str]
    help: ClassVar[str]
    """One line: what is written, for which device."""
    outputs: ClassVar[tuple[str, ...]]
    """Patterns of the names of the files that `build` writes; no file of a user's is overwritten by them."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Installed packages that it builds with, whose versions the report names."""
    lowering: ClassVar[str | None] = None
    """Module in passes/lowering/ whose pass the driver runs on a copy of the model, just before `check` and
    `build`.
    """
    placement: ClassVar[Placement | None] = None
    """What the target runs in INT8; None if it only writes a file."""
    timed: ClassVar[bool] = False
    """ONNX Runtime on this CPU is what the lowered model is for: the latency to report and to judge is its,
    not the canonical form's.
    """

    streams: ClassVar[bool] = False
    """Whether it looks at no weights, so that they may stay in files (held.py)."""
    opens: ClassVar[bool] = False
    """What is built runs where Lathe does (`open`): what is measured and judged is that, not the lowered model in ONNX
    Runtime. `runs_here` says it of this machine.
    """
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the written files that `reopen` takes."""
    opened: ClassVar[bool] = False
    """Users open the file in ONNX Runtime as it is: its figures are those of a plain session."""

    moved: ClassVar[Mapping[str, str]] = {}
    """Name of an option that a neighbour of the target has -> why this one has not, and what to do instead."""

    @dataclass(frozen=True)
    class Config:
        """Options. Every field's metadata has `help` and `unit`; values are checked on construction, which
        raises UsageError.
        """

        def __post_init__(self) -> None:
            check_choices(self)

    def available(self) -> str | None:
        """None if the target can build on this machine, else one line: why not, and what to install."""
        return None

    def unserved(self, options: Any) -> str | None:
        """None if the target, which is available, can build with these options on this machine, else one line: which
        it cannot serve. Asked before the first pass.
        """
        return None

    def placed(self, options: Any) -> Placement | None:
        """What the target runs in INT8 with these options."""
        return self.placement

    def accepts(self, model: onnx.ModelProto, options: Any) -> None:
        """Raises UsageError for options that contradict the model's inputs: asked before the first pass, of the model
        as it was given.
        """

    def refusals(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str, str]]:
        """(node, operator, reason) for what makes a build of the lowered model fail, known before it is tried."""
        return []

    def check(self, model: onnx.ModelProto, options: Any) -> list[tuple[str, str]]:
        """(node, reason) for what the target will refuse, run in float though it is quantized, or not do though it is
        chosen. `model` is the lowered model.
        """
        return []

    def layers(self, model: onnx.ModelProto, options: Any = None) -> list[LayerVerdict]:
        """A verdict per layer, in graph order; empty for a target that only writes a file. `model` is the
        lowered model; without options, theirs by default.
        """
        return []

    def lowering_options(
        self, options: Any, model: onnx.ModelProto, known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Options of the lowering's Config that follow from the target's, and from what the model is: the one that is
        to be lowered, with nothing `known`, then what the lowering made of it with the options `known`, until they
        stay the same.
        """
        return {}

    def guards(self, options: Any) -> bool:
        """Whether the lowering is to time what it does, on this machine, and leave out what makes the model slower."""
        return False

    def fed(self, options: Any, preprocess: str | None) -> Any:
        """The options, with how the run's data becomes input: the text of --preprocess, where it has one."""
        return options

    def named(self, options: Any, names: Sequence[str]) -> Any:
        """The options, with the names of the classes by index, where the run's data has them."""
        return options

    def fitted(
        self,
        model: onnx.ModelProto,
        options: Any,
        shapes: Mapping[str, tuple[int, ...]],
        per_call: bool = False,
    ) -> tuple[Any, list[str]]:
        """The options, with what the data's shapes decide where the caller did not; and what to say of it.

        shapes: of the first samples of the data, by input; empty without data. per_call: each sample is a call of
        the model, whose first axes are no batch. `model` is the model before its lowering. Raises UsageError for
        options that do not fit the model.
        """
        return options, []

    def settled(self, model: onnx.ModelProto, options: Any, fitted: Any) -> tuple[Any, list[str]]:
        """What `fitted` made of the caller's `options`, without what the lowered `model` does not allow; and what to
        say of it.
        """
        return fitted, []

    def build(self, model: Path, directory: Path, options: Any, progress: Progress) -> Artifact:
        """Builds the lowered model file into `directory`, which exists. Files appear whole or not at all.

        Raises TargetError if the target is not available or the build fails, UsageError for options that do
        not fit the model.
        """
        raise NotImplementedError

    def verify(
        self,
        model: Path,
        artifact: Artifact,
        options: Any,
        feeds: Mapping[str, Any],
        progress: Progress,
        canonical: onnx.ModelProto,
    ) -> Mapping[str, Any]:
        """Tries what was built from the lowered model file on `feeds`, where this machine can. Returns details for
        the report; of them `notes` are warnings. `canonical`: the model before its lowering, which may hold at the
        sizes alone that it is built for. Raises TargetError where it does not compute what the model does.
        """
        return {}

    def runs_here(self, options: Any) -> bool:
        """Whether this machine runs what is built with these options; asked before it is built."""
        return self.opens

    def profiler(self, options: Any, feeds: Feeds, progress: Progress) -> AbstractContextManager[Any] | None:
        """For a target that guards: what times its lowered models on their own device, a Profiler of
        passes/core/services.py. None where that is ONNX Runtime on this processor. `feeds`: a batch of so many samples
        for a session.
        """
        return None

    def open(self, artifact: Artifact, options: Any, threads: int = 1) -> Any | None:
        """What was built as a session, with the methods get_inputs, get_outputs and run of an
        onnxruntime.InferenceSession; metrics, gates and times are then its. None where this machine cannot run it.

        A session that runs elsewhere than in this process says itself how long a call takes: `call_ms(feeds)`. It may
        time other ways to run: `ways_ms(feeds, budget_s)`, by name the milliseconds of calls, or why it cannot; and say
        which sizes it is for, by input: `usual_shapes`. What it holds it gives back by `close()`. One that a simulator
        runs says so, `simulated`, why its times are none: nobody takes them.
        """
        return None

    def wrote(self, path: Path) -> bool:
        """Whether the file is one for `reopen`, by its name, or its first bytes."""
        return path.suffix.lower() in self.suffixes

    def reopen(self, path: Path, threads: int = 1) -> Reopened:
        """A file that an earlier build wrote. One that would end the process that runs it is refused.

        Raises ModelError for a file that is not, or not with all that belongs to it, what `build` wrote, TargetError
        where this machine cannot run it as it is.
        """
        raise NotImplementedError


def layers_of(model: onnx.ModelProto) -> dict[int, onnx.NodeProto]:
    """Position -> node, of the layers of the main graph with a weight that does not depend on the inputs."""
    computed = {value.name for value in model.graph.input} - {
        tensor.name for tensor in model.graph.initializer
    }
    found = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type in LAYERS and not node.domain and node.input[1] not in computed:
            found[index] = node
        if computed.intersection(node.input) or node.op_type in ("If", "Loop", "Scan"):
            computed.update(node.output)
    return found


def own_kernels(model: onnx.ModelProto, runtime: str) -> list[tuple[str, str]]:
    """(node, reason), once, of a model that carries choices of algorithms for convolutions, for a target whose
    `runtime` chooses its own.
    """
    carrying = [
        node.name
        for node in model.graph.node
        if any(entry.key == metadata.CONV_ALGORITHM for entry in node.metadata_props)
    ]
    if not carrying:
        return []
    others = len(carrying) - 1
    more = f" and {others} other layer{'s' if others > 1 else ''}" if others else ""
    return [
        (
            carrying[0],
            f"the algorithm that winograd chose for it{more} does not apply: {runtime} chooses its own kernels",
        )
    ]
