"""Models, packed files, data and recipes with damaged bytes or senseless fields, through the whole command.

What passes: exit code 0 with the outputs of the model that was given (fold, prune(sparsity=0) and codebook(bits=8) lose nothing on
these), exit code 2 with one line, or 4 with a target's reason. What fails: a traceback, any other code, more or fewer
lines than one, a crash, a hang, memory, other outputs, a file left behind by a command that refused.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from torture_parts import Outcome, Request, failed, passed
from torture_parts._mutate import bytes_changed, fields_changed
from torture_parts._pool import Done, each
from torture_parts._victims import victims, write

CASES = 10_000
SPARE_BYTES = 500_000_000
LIMIT_S = 60.0
LIMITS = (
    "Memory: at most twice the file and 500 MB above the imports. Time: 60 s, on a machine that may be busy."
)
LOSSLESS = "fold,prune(sparsity=0),codebook(bits=8)"
RECIPE = """target = ["onnx"]
seed = 3
[[pass]]
name = "fold"
[[pass]]
name = "prune"
sparsity = 0.5
[[pass]]
name = "codebook"
bits = 4
"""


@dataclass(frozen=True)
class Ended:
    """A command: its exit code, and what it wrote to standard error and to standard output."""

    code: int
    said: str
    printed: str = ""


def run(request: Request) -> Iterator[Outcome]:
    attack = partial(attacked, seed=request.seed, within=request.folder)
    for done in each(attack, warm, request.numbers, LIMIT_S, request.workers):
        yield judged(done)


def judged(done: Done) -> Outcome:
    name, size, kind = done.value or (f"{done.number}", 0, "")
    if done.fault:
        return failed(done.number, done.fault)
    if done.peak_bytes > 2 * size + SPARE_BYTES:
        return failed(
            done.number, f"{name}: took {done.peak_bytes / 1e6:,.0f} MB more for a file of {size:,} bytes"
        )
    return passed(done.number, kind)


def warm() -> None:
    """Everything that cases import, and the process that loads models first."""
    victims()
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), victims()["convolutional"])
        for arguments in (["inspect", path], [path, "--passes", LOSSLESS, *quiet(Path(folder) / "out")]):
            assert command(arguments).code == 0
        for target in ("ncnn", "litert"):
            command(["build", path, "--target", target, "--quiet", "--out", Path(folder) / target])


def quiet(out: Path) -> list[str | Path]:
    return ["--no-latency", "--no-html", "--quiet", "--threads", "1", "--out", out]


def command(arguments: list[str | Path]) -> Ended:
    """The command, in this process; what the process itself writes to standard error counts too."""
    from onnx_lathe.optimizer.cli import main

    with tempfile.TemporaryFile() as caught, contextlib.redirect_stdout(io.StringIO()) as printed:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                code = main([str(word) for word in arguments])
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        caught.seek(0)
        return Ended(code, said.getvalue() + caught.read().decode(errors="replace"), printed.getvalue())


def attacked(number: int, seed: int, within: Path) -> tuple[str, int, str]:
    """Makes the case and runs it: what it is called, the bytes of its file, and the kind of its end. Raises
    AssertionError for what must not be.
    """
    random = np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=within) as folder:
        kind = str(random.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))
        return KINDS[kind][1](random, Path(folder))


def _models(random: np.random.Generator, folder: Path) -> tuple[str, int, str]:
    names = list(victims())
    name, other = (names[int(place)] for place in random.integers(0, len(names), 2))
    by = "bytes" if random.random() < 0.35 else "fields"
    content = victims()[name]
    changed = (
        bytes_changed(content, victims()[other], random) if by == "bytes" else fields_changed(content, random)
    )
    path = write(folder, changed)
    inspected = orderly(command(["inspect", path, "--quiet"]), "inspect")
    what = float(random.random())
    if what < 0.6:
        ended = compiled(path, folder / "out")
    elif what < 0.7:
        data = folder / "data.npz"
        feeds = (
            {"x": np.ones((4, 3, 12, 12), np.float32)}
            if name in ("convolutional", "external", "old")
            else {"x": np.ones((8, 24), np.float32)}
        )
        np.savez(data, **feeds, z=np.ones((8, 24), np.float32))
        arguments = [path, "--passes", "int8", "--calibration", data, *quiet(folder / "out")]
        ended = orderly(command(arguments), "int8", folder / "out")
    elif what < 0.9:
        target = "ncnn" if what < 0.8 else "litert"
        ended = orderly(
            command(
                ["build", path, "--target", target, "--quiet", "--threads", "1", "--out", folder / "out"]
            ),
            target,
        )
    else:
        ended = packed(path, folder)
    return f"{name} by {by}", len(changed), f"model by {by}: {inspected} to inspect, {ended}"


def compiled(path: Path, out: Path) -> str:
    ended = orderly(command([path, "--passes", LOSSLESS, *quiet(out)]), "compile", out)
    if ended != "done":
        return ended
    from onnx_lathe.errors import LatheError
    from onnx_lathe.optimizer.opening import first_difference
    from onnx_lathe.runtime.running import ort

    try:
        given = ort.session(path, threads=1)
        feeds = ort.random_feeds(given)
        ort.run(given, feeds)
    except LatheError:
        return "done, the model itself does not run"
    made = ort.session(out / "model.onnx", threads=1)
    difference = first_difference(given, made, feeds)
    assert not difference, f"compiled: {difference}"
    return "done, the same outputs"


def packed(path: Path, folder: Path) -> str:
    packed_path, back = folder / "p.lathe", folder / "back.onnx"
    ended = orderly(
        command(["pack", path, "--out", packed_path, "--effort", "fast", "--quiet"]), "pack", packed_path
    )
    if ended != "done":
        return ended
    unpacked = orderly(command(["unpack", packed_path, "--out", back, "--quiet"]), "unpack", back)
    assert unpacked == "done", "what was packed does not unpack"
    if b"weights.bin" not in path.read_bytes():
        assert back.read_bytes() == path.read_bytes(), "packed and unpacked, the file is another"
    return "done, packed and back"


def _lathe(random: np.random.Generator, folder: Path) -> tuple[str, int, str]:
    import zlib

    from onnx_lathe.runtime.pack import pack

    names = [name for name in victims() if name != "external"]
    name = names[int(random.integers(0, len(names)))]
    content = pack(victims()[name], effort="fast")
    changed = bytes_changed(content[:-4], content, random)
    if random.random() < 0.8:  # the checksum of the whole does not stop it
        changed = content[:5] + changed[5:]
        changed += zlib.crc32(changed).to_bytes(4, "little")
    path = write(folder, changed, "model.lathe")
    ended = orderly(
        command(["unpack", path, "--out", folder / "back.onnx", "--quiet"]), "unpack", folder / "back.onnx"
    )
    inspected = orderly(command(["inspect", path, "--quiet"]), "inspect")
    return f"packed {name}", len(changed), f"packed file: {ended}, {inspected} to inspect"


def _arrays(random: np.random.Generator, folder: Path) -> tuple[str, int, str]:
    path = write(folder, victims()["perceptron"])
    rows = random.standard_normal((16, 24)).astype(np.float32)
    whole = io.BytesIO()
    save = np.savez_compressed if random.random() < 0.5 else np.savez
    save(whole, x=rows, z=rows, labels=np.arange(16) % 6)
    changed = bytes_changed(whole.getvalue(), whole.getvalue(), random)
    (folder / "data.npz").write_bytes(changed)
    arguments = [path, "--passes", "int8", "--calibration", folder / "data.npz", *quiet(folder / "out")]
    return "arrays", len(changed), f"arrays: {orderly(command(arguments), 'int8', folder / 'out')}"


def _pictures(random: np.random.Generator, folder: Path) -> tuple[str, int, str]:
    from PIL import Image

    path = write(folder, victims()["convolutional"])
    format_ = str(random.choice(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
    whole = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(whole, format_)
    changed = bytes_changed(whole.getvalue(), whole.getvalue(), random)
    (folder / "data").mkdir()
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(format_, format_.lower())
    (folder / "data" / f"0.{suffix}").write_bytes(changed)
    arguments = [
        path,
        "--passes",
        "int8",
        "--calibration",
        folder / "data",
        "--preprocess",
        "scale=1/255",
        *quiet(folder / "out"),
    ]
    return (
        f"picture {format_}",
        len(changed),
        f"pictures: {orderly(command(arguments), 'int8', folder / 'out')}",
    )


def _recipe(random: np.random.Generator, folder: Path) -> tuple[str, int, str]:
    path = write(folder, victims()["perceptron"])
    changed = bytes_changed(RECIPE.encode(), RECIPE.encode(), random)
    (folder / "recipe.toml").write_bytes(changed)
    arguments = [path, "--recipe", folder / "recipe.toml", *quiet(folder / "out")]
    return "recipe", len(changed), f"recipe: {orderly(command(arguments), 'recipe', folder / 'out')}"


KINDS = {
    "model": (0.8, _models),
    "packed": (0.08, _lathe),
    "arrays": (0.04, _arrays),
    "pictures": (0.04, _pictures),
    "recipe": (0.04, _recipe),
}
"""Share of the cases, and what makes and runs one."""
ENDS = {0: "done", 2: "refused", 4: "refused by the target"}
NOT_OURS = re.compile(r"^(\d{4}-\d\d-\d\d .*\[[WE]:onnxruntime|W\d{4} |I\d{4} |WARNING: |INFO: )")
"""Lines of the runtimes themselves."""


def orderly(ended: Ended, what: str, *left: Path) -> str:
    """How a command ended, if it did as it should: a refusal is one line, and leaves no model."""
    shown = ended.said[-600:]
    assert "Traceback" not in ended.said, f"{what}: traceback: {shown}"
    assert ended.code in ENDS, f"{what}: exit code {ended.code}: {shown}"
    lines = [line for line in ended.said.splitlines() if not NOT_OURS.match(line)]
    if ended.code == 4 and not lines:
        assert "FAILED: " in ended.printed, f"{what}: exit code 4 without a reason: {ended.printed[-600:]}"
    elif ended.code:
        assert len(lines) == 1, f"{what}: {len(lines)} lines for exit code {ended.code}: {shown}"
        assert lines[0].startswith("optimize: "), f"{what}: {shown}"
        for place in left:
            assert not place.is_file(), f"{what}: refused, but {place.name} is there"
            assert not (place / "model.onnx").exists(), (
                f"{what}: refused, but {place.name}/model.onnx is there"
            )
    return ENDS[ended.code]
