"""Models, packed heads and recipes as libFuzzer makes them, guided by the branches of Lathe that they reach (atheris).

A case is one input of a third of the cases each: a model file that is loaded and checked; a packed file whose checksum is
right and whose head is stored plainly, which is unpacked; a recipe that is read. Seeds are the victims of `hostile`. What
passes: it is taken, or refused with a LatheError. What fails: another exception, a crash, more than LIMIT_S seconds or 2 GB.
With one seed libFuzzer makes the same inputs again; one that fails is kept in hexadecimal in the reason, if it is short.
"""

import contextlib
import importlib.util
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torture_parts import Outcome, Request, failed, passed, skipped
from torture_parts._victims import victims

CASES = 30_000
LIMIT_S, MOST_MB = 20, 2000
LIMITS = f"An input of `guided` may take {LIMIT_S} s and its process {MOST_MB} MB."
KINDS = ("model", "packed", "recipe")
SHOWN_BYTES = 400
RECIPE = """passes = "fold,prune(sparsity=0.5)"
seed = 3
gate = ["top1 drop <= 0.5%"]
target = ["onnx", "ncnn"]
[data]
calibration = "data.npz"
"""
STEPS = """[[pass]]
name = "prune"
sparsity = 0.5
layers = { "a*" = 0.25 }
"""


def run(request: Request) -> Iterator[Outcome]:
    if importlib.util.find_spec("atheris") is None:
        yield skipped(request.first, "atheris is not installed (pip install atheris, on Linux)")
        return
    shares = [len(request.numbers[place :: len(KINDS)]) for place in range(len(KINDS))]
    for kind, runs in zip(KINDS, shares, strict=True):
        with request.place(kind) as folder:
            yield from _fuzzed(kind, runs, request.seed, folder)


def _fuzzed(kind: str, runs: int, seed: int, folder: Path) -> Iterator[Outcome]:
    command = [sys.executable, "-m", "torture_parts.guided", kind, str(folder)]
    limits = [f"-timeout={LIMIT_S}", f"-rss_limit_mb={MOST_MB}", "-max_len=65536"]
    ended = subprocess.run(
        [*command, f"-runs={runs}", f"-seed={seed + 1}", *limits, f"-artifact_prefix={folder}/bad-"],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=Path(__file__).parents[1],
    )
    said = ended.stderr + ended.stdout
    done = [int(number) for number in re.findall(r"^#(\d+)\s", said, re.MULTILINE)]
    reached = re.findall(r"cov: (\d+)", said)
    for number in range(max(done, default=0) if ended.returncode else runs):
        yield passed(
            f"{kind} {number}", f"{kind}: taken or refused, {(reached or ['0'])[-1]} branches reached"
        )
    if ended.returncode:
        yield failed(f"{kind} of seed {seed}", _reason(said, ended.returncode, folder))


def _reason(said: str, code: int, folder: Path) -> str:
    lines = [line for line in said.splitlines() if re.search(r"Error|ERROR|File \"", line)]
    bad = [path.read_bytes() for path in folder.glob("bad-*")]
    shown = (
        bad[0].hex() if bad and len(bad[0]) <= SHOWN_BYTES else f"{len(bad[0]):,} bytes" if bad else "none"
    )
    return f"exit code {code}: {' '.join(lines[-6:])[-800:]}; input: {shown}"


def _fuzz(kind: str, folder: Path, arguments: list[str]) -> None:
    """In a process of its own, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["onnx_lathe"]):
        from onnx_lathe.errors import LatheError
        from onnx_lathe.optimizer.recipe import load_recipe
        from onnx_lathe.runtime.files.model_file import load
        from onnx_lathe.runtime.pack import container, head, unpack
    place, corpus = folder / "case", folder / "corpus"
    corpus.mkdir()

    def model(content: bytes) -> None:
        place.write_bytes(content)
        load(place)

    def packed(content: bytes) -> None:
        whole = start + content
        unpack(whole + zlib.crc32(whole).to_bytes(4, "little"), 100_000_000)

    def recipe(content: bytes) -> None:
        place.write_bytes(content)
        load_recipe(place)

    start = container.MAGIC + bytes([container.VERSION])
    seeds: list[bytes] = list(victims().values())
    if kind == "packed":
        head.compress = lambda content, thorough=True: (head.STORED, content)
        seeds = [container.pack(one, effort=container.FAST)[len(start) : -4] for one in seeds]
    elif kind == "recipe":
        seeds = [RECIPE.encode(), STEPS.encode()]
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    attacks: dict[str, Callable[[bytes], None]] = {"model": model, "packed": packed, "recipe": recipe}

    def attempt(content: bytes) -> None:
        with contextlib.suppress(LatheError):
            attacks[kind](content)

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
