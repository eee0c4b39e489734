"""What the pipeline gives to passes: data in its roles, the calibrator, the trainer, the runner, the timers,
the fitter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.optimizer import kernel_times
from onnx_lathe.optimizer.judging.asking import reads_truth
from onnx_lathe.optimizer.measuring import sample_feeds
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.synthesizing import check_roles, synthesized
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.services import Context
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.data import (
    DataSource,
    DataSpec,
    InputSpec,
    model_classes,
    model_inputs,
    named,
    open_source,
    overlap,
    read_classes,
    split,
    take,
)
from onnx_lathe.runtime.data.synthetic import asked_for
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import OriginalComparer, OutputComparer
from onnx_lathe.runtime.running.ort import OneTimeEvaluator, PairTimer
from onnx_lathe.runtime.running.profiling import ModelProfiler
from onnx_lathe.runtime.training import (
    TorchFitter,
    TorchTrainer,
    TrainingSetup,
    check_trainable,
    require_torch,
)
from onnx_lathe.runtime.training.hooks import hook_place, load_hook
from onnx_lathe.runtime.training.parallel.grid import parse_parallel
from onnx_lathe.runtime.training.parallel.request import parse_launch

CALIBRATION_SAMPLES = 512
FEW_SAMPLES = 16
"""With fewer, a pass that calibrates warns."""
NATURAL_REPEATS = 0.01
"""Share of equal samples up to which two sets count as different: large public sets have a few pictures
twice.
"""


@dataclass
class Roles:
    """Data by role. `notes` are sentences for the report that say where each comes from and how it is read;
    `warnings` what is doubtful about it.
    """

    train: DataSource | None = None
    calibration: DataSource | None = None
    evaluation: DataSource | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def sample(self) -> DataSource | None:
        """What a model is tried and timed on."""
        return self.evaluation or self.calibration

    def fingerprints(self) -> dict[str, str]:
        roles = {
            "training data": self.train,
            "calibration data": self.calibration,
            "evaluation data": self.evaluation,
        }
        return {name: source.fingerprint for name, source in roles.items() if source is not None}


def open_roles(recipe: Recipe, model: onnx.ModelProto) -> Roles:
    """Opens the data that the recipe names and splits `data` among the roles without data of their own.

    Evaluation data is never trained on: the same data in both roles is refused. Raises DataError or
    UsageError.
    """
    return open_fed(recipe, model_inputs(model), model_classes(model), model)


def open_fed(
    recipe: Recipe, inputs: Sequence[InputSpec], classes: int | None, model: onnx.ModelProto | None = None
) -> Roles:
    """As `open_roles`, for a model with these inputs and so many classes."""
    check_roles(recipe)
    class_names = None if recipe.classes is None else read_classes(recipe.classes)
    opened: dict[str, DataSource] = {}
    truth = reads_truth(recipe)

    def source(spec: DataSpec | None) -> DataSource | None:
        if spec is None:
            return None
        if asked_for(spec):
            found: DataSource = synthesized(spec, inputs, recipe, model)
        else:
            found = open_source(
                spec, inputs, recipe.preprocess, classes, class_names, truth, recipe.fix_inputs
            )
        opened.setdefault(named(spec), found)
        return found

    roles = Roles(source(recipe.train), source(recipe.calibration), source(recipe.eval))
    whole = source(recipe.data)
    _describe(opened, recipe, roles)
    for role, spec in (
        ("training", recipe.train),
        ("calibration", recipe.calibration),
        ("evaluation", recipe.eval),
    ):
        if spec is not None:
            used = (
                _part_used(roles.calibration)
                if role == "calibration" and roles.calibration is not None
                else ""
            )
            roles.notes.append(f"{role}: {named(spec)}{used}")
    if recipe.data is not None and whole is not None:
        _split_data(recipe.data, whole, roles, recipe.seed)
    if roles.calibration is None and roles.train is not None:
        roles.calibration = take(roles.train, CALIBRATION_SAMPLES)
        which = "the first" if roles.train.count is None else "evenly spread"
        roles.notes.append(f"calibration: at most {CALIBRATION_SAMPLES} of the training samples, {which}")
    _check_apart(recipe, roles)
    return roles


def _describe(opened: Mapping[str, DataSource], recipe: Recipe, roles: Roles) -> None:
    """Notes and warnings of the sources. Raises UsageError if --classes orders no folder."""
    if recipe.classes is not None and opened and not any(source.class_names for source in opened.values()):
        raise UsageError(
            f"--classes {recipe.classes}: gives class folders their order, and no data is a folder of them; leave it out"
        )
    for name, source in opened.items():
        roles.notes += [f"{name}: {note}" for note in source.notes]
        roles.warnings += source.warnings


def _part_used(calibration: DataSource) -> str:
    """What to add where the calibration data is named, if it may not be used whole."""
    if calibration.count is None:
        return f", the first {CALIBRATION_SAMPLES} samples at most"
    return (
        f", {CALIBRATION_SAMPLES} of its {calibration.count:,} samples, at random"
        if calibration.count > CALIBRATION_SAMPLES
        else ""
    )


def _check_apart(recipe: Recipe, roles: Roles) -> None:
    """Refuses evaluation data that is trained on or calibrated with. A few equal samples, as real data has,
    are only noted.
    """
    if roles.evaluation is None:
        return
    for role, source in (("training", roles.train), ("calibration", roles.calibration)):
        shared = 0 if source is None else overlap(source, roles.evaluation)
        if shared == 0:
            continue
        count = roles.evaluation.count
        if count is None or shared > NATURAL_REPEATS * count:
            advice = f"name different ones with --{'train' if role == 'training' else role} and --eval"
            raise UsageError(
                f"{shared} evaluation samples are in the {role} data too; {advice}, or give --data alone to split it"
            )
        roles.notes.append(f"{shared} of {count:,} evaluation samples are in the {role} data too")


def _split_data(spec: DataSpec, whole: DataSource, roles: Roles, seed: int) -> None:
    if roles.evaluation is None:
        parts = split(whole, seed=seed)
        roles.evaluation = parts.evaluation
        if roles.train is None and roles.calibration is None:
            roles.train, roles.calibration = parts.train, parts.calibration
            roles.notes.append(f"{named(spec)}: {parts.description}")
            return
        roles.notes.append(
            f"{named(spec)}: split at random (seed {seed}); {parts.evaluation.count:,} samples evaluate"
        )
        if roles.train is None:
            roles.train = parts.train
            roles.notes.append(f"{named(spec)}: {parts.train.count:,} others train")
    elif roles.train is None:
        roles.train = whole
        roles.notes.append(f"training: {named(spec)}")
    else:
        raise UsageError(
            "--data is given, but --train and --eval already name all the data; leave --data out"
        )


def check_needs(passes: list[Pass], roles: Roles, recipe: Recipe) -> None:
    """Raises before anything runs if a pass lacks its data, or PyTorch. DataError or UsageError name the
    pass and the option.
    """
    if recipe.retrain is not None:
        hook_place(recipe.retrain)
    if not any("trainer" in instance.needs for instance in passes):
        for option, value in (
            ("--retrain", recipe.retrain),
            ("--memory", recipe.memory),
            ("--launch", recipe.launch),
            ("--parallel", recipe.parallel),
        ):
            if value is not None:
                raise UsageError(
                    f"{option} {value}: no pass of the recipe retrains; add retrain to --passes, or leave {option} out"
                )
    for instance in passes:
        if {"calibrator", "runner"} & {*instance.needs} and roles.calibration is None:
            purpose = f" for {', '.join(instance.measuring)}" if instance.measuring else ""
            raise DataError(
                f"pass '{instance.name}' needs calibration data{purpose}; give --data, --train or --calibration, "
                "or, where there is none, --calibration synthetic"
            )
        if "gradients" in instance.needs and recipe.retrain is not None:
            raise UsageError(
                f"--retrain {recipe.retrain}: pass '{instance.name}' measures gradients by the built-in training, not by a hook; "
                "leave --retrain out, or give another importance="
            )
        if "trainer" in instance.needs:
            if roles.train is None:
                raise DataError(f"pass '{instance.name}' needs training data; give --data or --train")
            require_torch()
        if "fitter" in instance.needs:
            require_torch(f"{instance.name}(rounding=blocks)")
        if "kernel_timer" in instance.needs:
            kernel_times.require(instance)
    if recipe.parallel is not None and recipe.launch is None:
        raise UsageError(
            f'--parallel {recipe.parallel}: one process trains; give --launch, such as --launch "--nproc-per-node=2"'
        )
    if recipe.launch is not None:
        _check_launch(recipe.launch, recipe.parallel)
        if callable(recipe.train) or (recipe.train is None and callable(recipe.data)):
            raise UsageError(
                "a function of this process cannot feed workers of a launch; give 'file.py:function'"
            )


def _check_launch(launch: str, parallel: str | None) -> None:
    """Raises UsageError for what torchrun would refuse, and for sizes that do not fit the processes it starts."""
    asked = parse_launch(launch)
    if parallel is not None:
        layout = parse_parallel(parallel)
        if asked.processes is not None:
            layout.over(asked.processes)


def check_hook(passes: Sequence[Pass], recipe: Recipe, log: Path | None) -> None:
    """Imports the hook of a recipe that retrains, as each training will. Raises UsageError or PassError; `log`
    gets the traceback of the latter.
    """
    if recipe.retrain is not None and any("trainer" in instance.needs for instance in passes):
        load_hook(recipe.retrain, log)


def check_training(passes: Sequence[Pass], roles: Roles, recipe: Recipe, model: onnx.ModelProto) -> None:
    """Raises LatheError before anything runs for data or nodes that a training of the passes would end with."""
    training = [instance for instance in passes if "trainer" in instance.needs]
    if not training:
        return
    for instance in training if recipe.retrain is None else ():
        options = getattr(instance.config, "training", None) or instance.config
        if getattr(options, "distill", None) == 0 and roles.train is not None and not roles.train.labelled:
            raise DataError(
                f"pass '{instance.name}' learns from labels alone (distill=0), and the training data has none; "
                "give labels, or leave distill out to imitate the original model"
            )
    if recipe.parallel is not None and parse_parallel(recipe.parallel).serves:
        # PyTorch takes seconds to import.
        from onnx_lathe.runtime.training.parallel.server_parallel import check_served

        for instance in training:
            options = getattr(instance.config, "training", None) or instance.config
            if hasattr(options, "precision"):  # a pass that only measures gradients chooses its own
                check_served(recipe.parallel, recipe.retrain, vars(options))
    check_trainable(model)


def warnings(passes: list[Pass], roles: Roles) -> list[str]:
    """What the data allows, but will hardly bring what was hoped for."""
    count = None if roles.calibration is None else roles.calibration.count
    found = list(roles.warnings)
    if count is None or count >= FEW_SAMPLES:
        return found
    few = f"{count} calibration sample{'' if count == 1 else 's'}: what is measured on so few hardly holds for others; give 100 to 500"
    return (
        [*found, few] if any({"calibrator", "runner"} & {*instance.needs} for instance in passes) else found
    )


class Services:
    """What passes may ask for, as far as the data allows: made once, handed out as one Context per step."""

    def __init__(
        self,
        recipe: Recipe,
        roles: Roles,
        teacher: onnx.ModelProto | None,
        log: Path | None,
        status: Callable[[str], None],
        original: onnx.ModelProto | None = None,
    ) -> None:
        """`teacher` is the original model, for a recipe that retrains, `original` for one whose passes look at it."""
        self._base = Context(
            original=original,
            timer=PairTimer(),
            fitter=TorchFitter(recipe.seed, status),
            kernel_timer=kernel_times.kernel_timer(status),
            evaluator=OneTimeEvaluator(),
            progress=status,
        )
        if roles.calibration is not None:
            self._base = replace(
                self._base,
                calibrator=StreamingCalibrator(roles.calibration, limit=CALIBRATION_SAMPLES, progress=status),
                runner=OutputComparer(roles.calibration, limit=CALIBRATION_SAMPLES, progress=status),
            )
        self._sample, self._calibration = roles.sample, roles.calibration
        self._setup = None
        if roles.train is not None:
            self._setup = TrainingSetup(
                roles.train,
                teacher,
                hook=recipe.retrain,
                log=log,
                progress=status,
                memory=recipe.memory,
                launch=None if recipe.launch is None else parse_launch(recipe.launch),
                parallel=None if recipe.parallel is None else parse_parallel(recipe.parallel),
            )

    def profiling(self, context: Context) -> Context:
        """The context with times of whole models on the first sample, or on random input without data."""
        return replace(
            context, profiler=ModelProfiler(lambda session: sample_feeds(self._sample, session, 1))
        )

    def judging(
        self,
        context: Context,
        original: Path,
        read: Callable[[], onnx.ModelProto],
        fixed: Mapping[str, np.ndarray],
    ) -> Context:
        """The context with how near a model's outputs are to those of the file `original`, which `read` opens and
        which is fed with the values `fixed`, if there is calibration data.
        """
        if self._calibration is None:
            return context
        return replace(
            context, fidelity=OriginalComparer(original, read, self._calibration, context.progress, fixed)
        )

    def context(
        self, title: str, training_state: Path | None = None, placement: Placement = CANONICAL
    ) -> Context:
        """For the step of this title, such as "3/6 retrain(epochs=4)".

        training_state: the file from which an interrupted training goes on.
        """
        trainer = None
        if self._setup is not None:
            trainer = TorchTrainer(replace(self._setup, step=title, state=training_state))
        return replace(self._base, trainer=trainer, placement=placement)
