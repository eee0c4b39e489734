"""Real networks of networks.py: six recipes, three targets, against float and onnxruntime's own quantizer.

Latencies: one thread, the files in turn in one process, medians, as ratios.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import networks_inputs as draw
import networks_judge as judge
import networks_packages as packages
import numpy as np
import onnx

INT8 = "fold,int8"
RECIPES = ("fold", INT8, "fold,float16", "fold,prune(sparsity=0.5)", "fold,codebook(bits=4)", "pack")
TARGETS = ("onnx", "ort", "tensorrt-rtx")
PARTS = {"calibration": 16, "evaluation": 32}
SLOWER = 1.03
"""INT8 for ONNX Runtime may take this of float's time, and of the peer's, before it is a failure."""
BUDGET_S, LEAST, MOST = 6.0, 7, 150
PEER = "peer"
CONFIRMED = 2
"""More measurements of what was slower, since a shared machine is never quiet."""


@dataclass
class Row:
    """One network through one recipe. Keys of the mappings: step, onnx, ort, peer."""

    network: str
    recipe: str
    code: int = 0
    message: str = ""
    seconds: float = 0.0
    float_ms: float = 0.0
    base_bytes: int = 0
    sqnr: dict[str, float | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    """What a target failed with; empty text for one that was built."""
    peer: str = ""
    """Why there is no file of onnxruntime's quantizer."""
    problems: list[str] = field(default_factory=list)


def run(
    networks: Path, out: Path, only: Sequence[str] | None, recipes: Sequence[str] | None, resume: bool
) -> list[Row]:
    """A row per network and recipe; each is kept in `out`, where `resume` finds it again."""
    packages.PLACE[0] = networks
    networks.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, model, inputs in _found(networks, only):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, recipe in enumerate(RECIPES):
            if recipes and recipe not in recipes:
                continue
            kept = folder / f"{number}.json"
            if not resume or not kept.exists():
                row = _row(name, model, _data(inputs, folder), recipe, folder / str(number))
                kept.write_text(json.dumps(asdict(row)))
                print(_line(row), flush=True)
            rows.append(Row(**json.loads(kept.read_text())))
    return rows


def _found(
    folder: Path, only: Sequence[str] | None
) -> Iterator[tuple[str, Path, Mapping[str, packages.Draw]]]:
    known = {network.name: network for network in packages.REAL}
    for name, network in known.items():
        if not only or name in only:
            yield name, packages.fetched(network, folder), network.inputs
    for path in sorted(folder.glob("*.onnx")):
        if path.stem not in known and (not only or path.stem in only):
            try:
                yield path.stem, path, guessed(path)
            except ValueError as error:
                print(f"{path.stem} is left out: {error}")


def guessed(path: Path) -> Mapping[str, packages.Draw]:
    """Pictures for inputs of rank 4, smooth noise for others. Raises ValueError for what cannot be guessed."""
    found: dict[str, packages.Draw] = {}
    model = onnx.load(path, load_external_data=False)
    constant = {one.name for one in model.graph.initializer}
    for value in (one for one in model.graph.input if one.name not in constant):
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim][1:]
        if kind.elem_type != onnx.TensorProto.FLOAT:
            raise ValueError(f"'{value.name}' is no float tensor; what it takes is not known")
        if len(shape) == 3:
            last = shape[2] in (1, 3) and shape[0] not in (1, 3)
            channels = shape[2] if last else shape[0] or 3
            height, width = (size or 224 for size in (shape[:2] if last else shape[1:]))
            drawn = lambda g, h=height, w=width, c=channels: draw.picture(g, h, w, c)  # noqa: E731
            found[value.name] = packages.last(drawn) if last else drawn
        elif all(shape):
            found[value.name] = lambda g, shape=tuple(shape): draw.smooth(g, shape)
        else:
            raise ValueError(f"'{value.name}' has unknown dimensions beside its batch")
    return found


def _data(inputs: Mapping[str, packages.Draw], folder: Path) -> Path:
    path = folder / "data.npz"
    if not path.exists():
        generator, arrays = np.random.default_rng(0), {}
        for part, count in PARTS.items():
            for name, drawn in inputs.items():
                arrays[f"{part}/{name}"] = np.stack([drawn(generator) for _ in range(count)])
        np.savez(path, **arrays)
    return path


def _part(data: Path, part: str) -> dict[str, np.ndarray]:
    with np.load(data) as arrays:
        return {name.removeprefix(f"{part}/"): arrays[name] for name in arrays if name.startswith(f"{part}/")}


def _row(name: str, model: Path, data: Path, recipe: str, out: Path) -> Row:
    shutil.rmtree(out, ignore_errors=True)
    row = Row(name, recipe, base_bytes=model.stat().st_size)
    if recipe == "pack":
        _pack(row, model, out)
    else:
        arguments = [str(model), "--passes", recipe, "--target", ",".join(TARGETS), "--threads", "1"]
        arguments += [] if recipe == INT8 else ["--no-latency"]  # what does not pay is found by measuring
        for part in PARTS:
            arguments += [f"--{part[:4] if part == 'evaluation' else part}", f"{data}:{part}"]
        ran = judge.run(arguments, out)
        row.code, row.message, row.seconds = ran.code, ran.message, ran.seconds
        if ran.failure:
            row.problems.append(ran.failure)
        if ran.report:
            _compare(row, model, data, out, ran.report)
    shutil.rmtree(out, ignore_errors=True)
    return row


def _pack(row: Row, model: Path, out: Path) -> None:
    out.mkdir(parents=True)
    packed = out / "model.lathe"
    ran = judge.run_bare(["pack", str(model), "-o", str(packed)], out / "pack")
    row.code, row.message, row.seconds = ran.code, ran.message, ran.seconds
    if ran.failure:
        row.problems.append(ran.failure)
    elif ran.code == 0:
        row.sizes["pack"] = packed.stat().st_size
        back = judge.run_bare(["unpack", str(packed), "-o", str(out / "back.onnx")], out / "unpack")
        if back.code or (out / "back.onnx").read_bytes() != model.read_bytes():
            row.problems.append(f"WRONG unpacking gives another file (exit {back.code}: {back.message})")


def _compare(row: Row, model: Path, data: Path, out: Path, report: Mapping[str, Any]) -> None:
    row.targets = {target["name"]: target["error"] or "" for target in report["targets"]}
    found = judge.judged(model, out, report, _part(data, "evaluation"), lossless=row.recipe == "fold")
    row.sqnr, row.sizes = found["sqnr"], found["sizes"]
    row.problems += [f"WRONG {what}" for what in found["wrong"]]
    files = {
        target["name"]: out / target["files"][0]
        for target in report["targets"]
        if target["name"] in row.sqnr and target["files"]
    }
    if row.recipe == INT8:
        quality = next((one["quality"] for one in report["targets"] if one["name"] == "ort"), {})
        row.peer = _quantized(model, data, out / "peer.onnx", row, quality)
        files |= {} if row.peer else {PEER: out / "peer.onnx"}
    for _ in range(1 + CONFIRMED):
        code, times = judge.forked(_timed, {"float": model} | files, _part(data, "evaluation"))
        if times is None:
            row.problems.append(f"timing ends the process with {code}")
            return
        row.float_ms = times["float"]
        row.ratios = {label: ms / times["float"] for label, ms in times.items() if label != "float"}
        slow = _slow(row)
        if not slow:
            break
    row.problems += slow


def _slow(row: Row) -> list[str]:
    """What INT8 for ONNX Runtime is slower than."""
    if row.recipe != INT8 or "ort" not in row.ratios:
        return []
    limits = {"float": 1.0} | ({PEER: row.ratios[PEER]} if PEER in row.ratios else {})
    return [
        f"SLOW {row.ratios['ort'] / ratio:.2f} of the time of {label}"
        for label, ratio in limits.items()
        if row.ratios["ort"] > SLOWER * ratio
    ]


def _timed(pipe: Connection, files: Mapping[str, Path], feeds: judge.Feeds) -> None:
    """Sends the median milliseconds of every file, run in turn, in another order each time: who runs behind a
    larger network finds less of its own in the caches.
    """
    sessions = {label: judge.plain(path) for label, path in files.items()}
    size = next(iter(sessions.values())).get_inputs()[0].shape[0]
    count = size if isinstance(size, int) and size > 0 else 1
    one = {name: array[:count] for name, array in feeds.items()}
    rounds: list[list[float]] = []
    opened, shuffle = list(sessions.values()), np.random.default_rng(0)
    started = time.perf_counter()
    while len(rounds) <= MOST and (len(rounds) <= LEAST or time.perf_counter() - started < BUDGET_S):
        times = [0.0] * len(sessions)
        for place in shuffle.permutation(len(sessions)):
            begin = time.perf_counter()
            opened[place].run(None, one)
            times[place] = 1e3 * (time.perf_counter() - begin)
        rounds.append(times)
    medians = np.median(np.array(rounds[1:]), axis=0)
    pipe.send({label: float(ms) for label, ms in zip(sessions, medians, strict=True)})


def _quantized(model: Path, data: Path, path: Path, row: Row, quality: Mapping[str, Any]) -> str:
    """Writes the file of onnxruntime's quantizer and its SQNR; the reason if there is none."""
    code, sent = judge.forked(
        _peer, model, _part(data, "calibration"), _part(data, "evaluation"), path, dict(quality)
    )
    if sent is None:
        return f"the process ends with {code}"
    reason, found = sent
    if not reason:
        row.sqnr[PEER], row.sizes[PEER] = found, path.stat().st_size
    return str(reason)


def _peer(
    pipe: Connection,
    model: Path,
    calibration: judge.Feeds,
    evaluation: judge.Feeds,
    path: Path,
    quality: Mapping[str, Any],
) -> None:
    try:
        quantize_by_onnxruntime(model, calibration, path)
        base, answers = judge.Answers(model, evaluation), judge.Answers(path, evaluation)
        pipe.send(("", judge.worst(base, answers, judge.slices(base, quality))))
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the table says how
        pipe.send((" ".join(str(error).split())[:120] or type(error).__name__, None))


def quantize_by_onnxruntime(model: Path, calibration: judge.Feeds, path: Path) -> None:
    """UINT8 activations with zero-points, INT8 weights per channel, prepared as its documentation asks."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(calibration.values())))
            rows = ({name: array[at : at + 1] for name, array in calibration.items()} for at in range(count))
            self.rest = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        raised, prepared = Path(folder) / "raised.onnx", Path(folder) / "prepared.onnx"
        proto = onnx.load(model)
        if next(entry.version for entry in proto.opset_import if not entry.domain) < 13:  # scales per channel
            proto = onnx.version_converter.convert_version(proto, 13)
        onnx.save(proto, raised)
        quant_pre_process(str(raised), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def _line(row: Row) -> str:
    figures = ", ".join(
        [f"{label} {_db(value)} dB" for label, value in row.sqnr.items()]
        + [f"{label} x{ratio:.2f}" for label, ratio in row.ratios.items()]
        + [f"{target} failed: {error}" for target, error in row.targets.items() if error]
    )
    problems = "".join(f"\n    {what}" for what in row.problems)
    return f"{row.network} | {row.recipe} | exit {row.code} {row.message if row.code else ''} | {row.seconds:.0f} s | {figures}{problems}"


def _db(value: float | None) -> str:
    if value is None:
        return "no float output"
    return "equal" if value == float("inf") else f"{value:.1f}"


def markdown(rows: Sequence[Row]) -> list[str]:
    """The section of the results page."""
    failed = [f"- {row.network}, `{row.recipe}`: {what}" for row in rows for what in row.problems]
    what = {network.name: network for network in packages.REAL}
    lines = [f"{len(rows)} runs, {len(failed)} failures.", "", *failed, *([""] if failed else [])]
    lines += ["| network | what | from | made ready |", "|---|---|---|---|"]
    for name in dict.fromkeys(row.network for row in rows):
        one = what.get(name)
        lines.append(
            f"| {name} | {one.what} | {one.package} ({one.licence}) | {one.prepared} |"
            if one
            else f"| {name} | | | |"
        )
    lines += ["", *_against_peer([row for row in rows if row.recipe == INT8]), ""]
    lines += [
        "| network | recipe | exit | SQNR onnx | SQNR ort | time onnx | time ort | file onnx | file ort | tensorrt-rtx |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [_table_row(row) for row in rows]


def _table_row(row: Row) -> str:
    cells = [f"{row.network} | `{row.recipe}` | {row.code}"]
    cells += [_db(row.sqnr[label]) if label in row.sqnr else "" for label in ("onnx", "ort")]
    cells += [f"{row.ratios[label]:.2f}" if label in row.ratios else "" for label in ("onnx", "ort")]
    sizes = [
        row.sizes.get(label, row.sizes.get("pack") if label == "onnx" else None) for label in ("onnx", "ort")
    ]
    cells += [f"{size / 1e6:.2f} MB, {row.base_bytes / size:.1f}x" if size else "" for size in sizes]
    rtx = row.targets.get("tensorrt-rtx")
    said = row.message if row.code and not row.targets else {None: "", "": "built"}.get(rtx, rtx or "")
    return f"| {' | '.join(cells)} | {said} |"


def _against_peer(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| INT8 | float | Lathe for `ort` | onnxruntime | Lathe/onnxruntime | SQNR Lathe | SQNR onnxruntime |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = row.ratios.get("ort"), row.ratios.get(PEER)
        cells = [row.network, f"{row.float_ms:.1f} ms", f"{ours:.2f}" if ours else f"exit {row.code}"]
        cells.append(f"{theirs:.2f}" if theirs else row.peer)
        cells.append(f"{ours / theirs:.2f}" if ours and theirs else "")
        cells += [_db(row.sqnr[label]) if label in row.sqnr else "" for label in ("ort", PEER)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
