"""The matrix of networks.py: networks_made.py in every form, through every pass and what people combine.

A form is exported once and takes a few recipes; forms and recipes come from shuffled decks, so that however
early the time ends, each network, exporter, opset and recipe has had its turn about equally often.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import networks_judge as judge
import networks_made as made
import numpy as np

RECIPES: tuple[tuple[str, str], ...] = (
    ("fold", "onnx"),
    ("equalize", "onnx"),
    ("prune(sparsity=0.7)", "onnx,pack"),
    ("prune_channels(sparsity=0.3)", "onnx"),
    ("prune_nm", "onnx"),
    ("codebook(bits=4)", "onnx,pack"),
    ("svd(macs=0.6)", "onnx"),
    ("tensor_train", "onnx"),
    ("tucker(macs=0.6)", "onnx"),
    ("int8", "onnx,ort"),
    ("int4", "onnx"),
    ("float16", "onnx"),
    ("retrain(epochs=1)", "onnx"),
    ("fold,int8", "ort"),
    ("fold,equalize,int8(method='percentile')", "onnx,ort"),
    ("fold,int8", "tensorrt-rtx"),
    ("fold,float16", "onnx,pack"),
    ("fold,prune(sparsity=0.8),retrain(epochs=1),codebook(bits=4)", "pack"),
    ("fold,prune_channels(sparsity=0.25),retrain(epochs=1),int8", "ort"),
    ("fold,svd(macs=0.7),int8", "onnx,ort"),
    ("fold,prune_nm,codebook(bits=5),int8", "onnx,ort"),
)
"""(passes, targets)."""
LOSSLESS = ("fold", "equalize")
PER_FORM = 4


@dataclass
class Tally:
    """What the matrix found. `lines` are the failures and wrong results, one each."""

    runs: int = 0
    done: int = 0
    failed: int = 0
    lines: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """How often each network, exporter, opset and recipe had its turn."""


def sampled(seed: int) -> Iterator[tuple[made.Form, Sequence[tuple[str, str]]]]:
    """Forms without end, each with its recipes."""
    generator = np.random.default_rng(seed)
    recipes: list[tuple[str, str]] = []
    while True:
        forms = made.forms()
        for at in _spread(forms, generator):
            if len(recipes) < PER_FORM:
                recipes = [*recipes, *(RECIPES[number] for number in generator.permutation(len(RECIPES)))]
            chosen, recipes = recipes[:PER_FORM], recipes[PER_FORM:]
            yield forms[at], chosen


def _spread(forms: Sequence[made.Form], generator: np.random.Generator) -> list[int]:
    """An order in which networks follow one another before any comes again."""
    rank: dict[str, int] = {}
    keys = {}
    order = generator.permutation(len(forms))
    for at in order:
        network = forms[at].network
        rank[network] = rank.get(network, 0) + 1
        keys[at] = (rank[network], generator.random())
    return sorted(map(int, order), key=lambda at: keys[at])


def run(folder: Path, minutes: float, seed: int, jobs: int = 1) -> Tally:
    """Runs until the time is over, `jobs` commands at once; prints every failure as it is found."""
    tally, ends = Tally(), time.monotonic() + 60 * minutes
    for (exporter, opset), reason in made.NOT_WRITTEN.items():
        tally.skips[f"{exporter} at opset {opset}: {reason}"] += 1
    for form, recipes in sampled(seed):
        if time.monotonic() > ends:
            break
        model = folder / f"{form}.onnx"
        model.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.export(form, model)
        except Exception as error:  # noqa: BLE001 - the exporter's own, of many kinds; counted with its reason
            tally.skips[f"{form} is not exported: {' '.join(str(error).split())[:120]}"] += 1
            continue
        data = folder / f"{form.network}.npz"
        if not data.exists():
            parts = {
                part: made.samples(form.network, count, seed)
                for seed, (part, count) in enumerate(PARTS.items())
            }
            np.savez(data, **{f"{part}/x": array for part, array in parts.items()})
        with ThreadPoolExecutor(jobs) as pool:
            tasks = [
                pool.submit(_one, form, model, data, passes, targets, ends) for passes, targets in recipes
            ]
        for task in tasks:
            if (outcome := task.result()) is not None:
                _record(tally, outcome)
        model.unlink()
    return tally


PARTS = {"train": 32, "calibration": 16, "evaluation": 8}


@dataclass(frozen=True)
class Outcome:
    """Of one run. `refusal`: its message, without what differs from run to run."""

    form: made.Form
    passes: str
    targets: str
    problems: list[str]
    unread: list[str]
    code: int
    refusal: str = ""


def _one(form: made.Form, model: Path, data: Path, passes: str, targets: str, ends: float) -> Outcome | None:
    """None when the time is over."""
    if time.monotonic() > ends:
        return None
    out = model.with_suffix("") / f"{RECIPES.index((passes, targets)):02d}"
    parts = [("--train", "train"), ("--calibration", "calibration"), ("--eval", "evaluation")]
    arguments = [str(model), "--passes", passes, "--target", targets, "--no-latency"]
    arguments += [word for option, part in parts for word in (option, f"{data}:{part}")]
    ran = judge.run(arguments, out)
    problems, unread, refusal = [ran.failure] if ran.failure else [], [], ""
    if ran.code == 0 and not problems:
        with np.load(data) as arrays:
            feeds = {"x": arrays["evaluation/x"]}
        found = judge.judged(model, out, ran.report, feeds, lossless=passes in LOSSLESS)
        unread = found.get("unread", [])
        problems = [f"WRONG {what}" for what in found["wrong"]]
    elif not problems:
        refusal = f"exit {ran.code}: {ran.message.replace(str(model), 'MODEL').replace(str(form), 'MODEL')}"
    shutil.rmtree(out, ignore_errors=True)
    return Outcome(form, passes, targets, problems, unread, ran.code, refusal)


def _record(tally: Tally, outcome: Outcome) -> None:
    form = outcome.form
    tally.runs += 1
    tally.done += outcome.code == 0 and not outcome.problems
    tally.failed += bool(outcome.problems)
    tally.unread.update(outcome.unread)
    tally.refusals.update([outcome.refusal] if outcome.refusal else [])
    recipe = f"`{outcome.passes}` for {outcome.targets}"
    tally.seen.update([form.network, form.exporter, f"opset {form.opset}", recipe])
    for what in outcome.problems:
        line = f"{form} | {outcome.passes} | {outcome.targets} | exit {outcome.code} | {what}"
        tally.lines.append(line)
        print(line, flush=True)


def markdown(tally: Tally) -> list[str]:
    """The section of the results page."""
    refused = sum(tally.refusals.values())
    return [
        f"{tally.runs} runs: {tally.done} done, {refused} refused with a reason, {tally.failed} failed or wrong.",
        "",
        *(f"- {line}" for line in tally.lines),
        *([""] if tally.lines else []),
        "| refused | runs |", "|---|---|", *(f"| {what} | {count} |" for what, count in tally.refusals.most_common()), "",
        "| left out | times |", "|---|---|",
        *(f"| {what} | {count} |" for what, count in (tally.skips + tally.unread).most_common()), "",
        "| what | runs |", "|---|---|", *(f"| {what} | {count} |" for what, count in sorted(tally.seen.items())),
    ]  # fmt: skip
