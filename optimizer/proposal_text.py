"""The text of a recipe that `optimize init` proposes: TOML, with what it follows from as comments."""

import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnx_lathe.errors import first_few
from onnx_lathe.optimizer.looking import Facts
from onnx_lathe.optimizer.report.units import count, size

WIDTH = 108
ENOUGH = 200
"""Evaluation samples from which on a gate of a point is more than chance: below, one sample is more than half of it."""
SQNR = 15
"""In dB: where an INT8 network is right, it is mostly above 20; at 12 its error is a quarter of the outputs."""


def text_of(facts: Facts, data: Mapping[str, str], out: Path) -> str:
    """The recipe. `data`: entries of its table [data]; `out`: where it will be written."""
    lines = [*_heading(facts, out), "", *_gates(facts), "", *_targets(facts), ""]
    if data:
        lines += ["[data]", *(f"{key} = {quoted(value)}" for key, value in data.items()), ""]
    for step in _steps(facts):
        lines += [*step, ""]
    return "\n".join(lines[:-1]) + "\n"


def quoted(text: str) -> str:
    """A string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment. Names of a model may hold anything, line ends too."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(
        plain, WIDTH, initial_indent="# ", subsequent_indent=f"# {indent}", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def step_of(
    name: str, options: Mapping[str, str] = {}, hints: Sequence[str] = (), why: str = ""
) -> list[str]:
    """The lines of one pass: its options, and others as comments. Values are TOML."""
    said = f" # {why}" if why else ""
    lines = [
        "[[pass]]",
        f"name = {quoted(name)}{said}",
        *(f"{key} = {value}" for key, value in options.items()),
    ]
    return [*lines, *(f"# {hint}" for hint in hints)]


def alternative(words: str, *steps: list[str]) -> list[str]:
    """Passes that are proposed as a comment."""
    return [*comment(words), *(f"# {line}" for step in steps for line in step)]


def _heading(facts: Facts, out: Path) -> Iterator[str]:
    whole = facts.size
    products = "" if whole.macs is None else f", {count(whole.macs)} MACs"
    yield from comment(
        f"{facts.model.name}: {count(whole.parameters)} parameters, {size(whole.weight_bytes)} of weights{products}. "
        "Proposed by optimize init; it runs as it is, and is yours to change:"
    )
    yield "#"
    yield f"#   optimize {shlex.quote(facts.model.as_posix())} --recipe {shlex.quote(out.as_posix())}"
    yield "#"
    for port in facts.ports:
        yield from comment(port, "  ")
    for note in facts.roles.notes:
        yield from comment(note, "  ")
    for warning in facts.roles.warnings:
        yield from comment(f"warning: {warning}", "  ")
    if facts.roles.sample is None:
        yield from comment(
            "no data was given: optimize init MODEL --data D makes a recipe that calibrates and is judged"
        )
    yield from comment(
        "optimize passes NAME explains every option of a pass, optimize targets lists the targets"
    )


def _gates(facts: Facts) -> Iterator[str]:
    """The condition that the result has to meet; without evaluation data there is none to be met."""
    evaluation = facts.roles.evaluation
    if evaluation is None:
        yield from comment("Judged by nothing yet: a gate on accuracy needs [data] eval, or --eval.")
        yield f'# gate = ["sqnr >= {SQNR}", "size ratio >= 3"]'
        return
    samples = evaluation.count
    outputs = [port for port in facts.ports if port.startswith("output ")]
    several = len(outputs) > 1
    shares = ("top1",) if several else ("top1", "agreement")  # boxes and scores have no classes
    better = next((name for name in shares if name in facts.metrics), None)
    if better is None and "sqnr" not in facts.metrics and "agreement" in facts.metrics:
        better = "agreement"
    gates = {"top1": "top1 drop <= 1%", "agreement": "agreement >= 98%"}
    by_signal = f"sqnr >= {SQNR}"
    yield "# The run ends with exit code 3 if this fails. Tighten it to what your application needs."
    if better is not None and (samples is None or samples >= ENOUGH or "sqnr" not in facts.metrics):
        judged = [gates[better]]
        if several and better == "top1" and "sqnr" in facts.metrics:
            yield from comment("top1 is of one output; sqnr, in dB, of the worst of them all.")
            judged.append(by_signal)
        yield f"gate = [{', '.join(map(quoted, judged))}]"
    elif "sqnr" in facts.metrics:
        if better is not None:
            yield from comment(
                f"{samples} evaluation samples: one is {100 / max(1, samples or 1):.2g} points. With some hundreds: "
                f'gate = ["{gates[better]}"]'
            )
        yield f"gate = [{quoted(by_signal)}]"
    else:
        yield from comment(
            "Nothing of its outputs can be compared by a number: a gate can be on the size alone."
        )
        yield '# gate = ["size ratio >= 3"]'
        return
    also = ['"size ratio >= 3"', '"latency ratio >= 1.2"']
    if "agreement" in facts.metrics and better != "agreement":
        also.insert(0, '"agreement >= 98%"')
    yield from comment(f"also: {', '.join(also)}")


def _targets(facts: Facts) -> Iterator[str]:
    for name, reason in facts.unavailable.items():
        yield from comment(f"{name} does not build on this machine: {reason}")
    names = ", ".join(quoted(str(target)) for target in facts.targets)
    others = [name for name in ("ort", "onnx", "pack", "ncnn", "jetson") if name not in str(names)]
    yield f"target = [{names}] # others: {', '.join(others)}, ..."


def _steps(facts: Facts) -> Iterator[list[str]]:
    yield step_of("fold", why="folds batch normalization and constants; the network computes the same")
    layers, calibrates = facts.layers, facts.roles.calibration is not None
    left = list(_left_in_float(facts))
    if layers.is_quantized:
        yield [
            *left,
            *alternative("It comes quantized. To do it anew:", step_of("int8", {"existing": '"strip"'})),
        ]
    elif layers.taken and calibrates and facts.runs_integers:
        yield from _integers(facts, left)
    elif layers.taken and calibrates:
        yield from _small(facts)
    elif any(target.name.startswith(("tensorrt", "jetson")) for target in facts.targets):
        yield step_of(
            "float16", why="half the size, and fast on a GPU, without data; INT8 needs [data] calibration"
        )
    elif layers.stored:
        yield from _weights_alone(facts, left)
    else:
        yield [
            *left,
            *comment("No layer holds a weight that could be made smaller: fold is all there is to do."),
        ]


def _integers(facts: Facts, left: list[str]) -> Iterator[list[str]]:
    equalize = step_of("equalize", why="makes channels alike; the network computes the same")
    if facts.layers.depthwise:
        yield [*comment("For its depthwise convolutions, whose channels differ most."), *equalize]
    hints = [
        "sensitivity = true # ranks the layers by what each alone costs",
        f"min_sqnr = {SQNR} # if the gate fails: finds the fewest layers to leave in float",
        'method = "mse" # for networks with HardSwish and gates',
        'layers = { "head.*" = false } # leaves layers in float by name',
        'rounding = "hessian" # levels that make up for one another, from the calibration data alone',
    ]
    if facts.layers.spatial:
        yield alternative(
            "Fewer multiplications: convolutions split in three, by what they answer. How few the gate allows: optimize auto "
            "--minimize macs.",
            step_of("tucker", {"macs": "0.7"}),
        )
    yield [*left, *step_of("int8", hints=hints)]
    yield alternative(
        "Gets some of the accuracy back from the calibration data, without labels:", step_of("refit")
    )
    train = facts.roles.train
    if train is not None:
        labels = (
            "labels and the original network"
            if train.labelled
            else "the original network alone: there are no labels"
        )
        yield alternative(
            f'If it costs too much all the same (pip install "onnx-lathe[train]"); learns from {labels}.',
            step_of("retrain", {"epochs": "2", "learn_scales": "true"}),
        )


def _small(facts: Facts) -> Iterator[list[str]]:
    """For targets that only write a file: few values per layer, as few as the calibration data allows."""
    yield [
        *comment("Few shared values per layer, as few as keep the outputs on the calibration data."),
        *step_of("codebook", {"min_sqnr": "20"}, ["min_sqnr = 15 # smaller, less exact"]),
    ]
    yield alternative(
        "Smaller at the same accuracy, in place of it: values that make up for one another, without labels. How many each "
        "layer needs: optimize search --passes with the same options.",
        step_of(
            "codebook",
            {"centroids": "32", "tradeoff": "0.02", "rounding": '"hessian"', "mantissa": "7", "biases": "8"},
        ),
    )
    yield alternative(
        "Zeros before it, also without training: what they cost the layers' answers is made up for.",
        step_of("prune", {"sparsity": "0.3", "score": '"obs"'}),
    )
    if facts.roles.train is not None:
        yield alternative(
            'Smaller by far, in place of it (pip install "onnx-lathe[train]"); optimize recipes small-download has more:',
            step_of("prune", {"sparsity": "0.8", "scope": '"global"', "score": '"lamp"', "training": "{ epochs = 10 }"}),
            step_of("codebook", {"bits": "4", "tradeoff": "0.01", "training": "{ epochs = 4, rate = 0.0005 }"}),
        )  # fmt: skip


def _weights_alone(facts: Facts, left: list[str]) -> Iterator[list[str]]:
    why = "weights in 8 bits; it computes in float, so the speed stays"
    if not facts.layers.taken:
        yield [*left, *step_of("int8", {"activations": "false"}, why=why)]
        return
    yield [
        *left,
        *step_of("int8", {"activations": "false"}, why=why),
        *comment(
            "With 100 to 500 samples, unlabelled too ([data] calibration), take that line away: INT8 is fast then."
        ),
    ]
    yield alternative(
        "Smaller, for large dense layers, in place of it:",
        step_of("int4", hints=['rounding = "hessian" # with [data] calibration: keeps what layers answer']),
    )


def _left_in_float(facts: Facts) -> Iterator[str]:
    """Which layers int8 leaves in float, by reason."""
    layers = facts.layers
    if not layers.left:
        return
    reasons: dict[str, list[str]] = {}
    for skip in layers.left:
        reasons.setdefault(skip.reason, []).append(skip.node)
    yield from comment(
        f"With activations in INT8, {len(layers.taken)} layers run so and {len(layers.left)} stay in float:"
    )
    for reason, names in reasons.items():
        yield from comment(f"  {len(names)}: {reason} ({first_few(names)})", "    ")
