"""The command `build.py`: builds the engine, and compares it with what was stored. The files are checked already.

Everything that can go wrong is one line on standard error and an exit code (refusal.py).
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.jetson.device import built, interruption, memory, showing, verifying, versions
from onnx_lathe.runtime.targets.jetson.device.arguments import LIBRARIES, parser
from onnx_lathe.runtime.targets.jetson.device.asking import ask
from onnx_lathe.runtime.targets.jetson.device.built import ENGINE, SIDECAR
from onnx_lathe.runtime.targets.jetson.device.refusal import (
    DEFECT,
    DIFFERS,
    DONE,
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    RefusedError,
)
from onnx_lathe.runtime.targets.tensorrt import worker

DESCRIPTION = "bundle.json"
READ = ("model", "request", "time_limit_s", "log", "memory", "reference")
"""What of the description is read here."""
FALLBACK = "GPU_FALLBACK"
MISSING = (
    "tensorrt is not installed for {python}: on a Jetson it comes with JetPack (sudo apt install python3-libnvinfer), for the "
    "system's python3 and for environments made with --system-site-packages; ./build.sh needs no Python"
)


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Runs the command for the bundle in `folder`. Returns the exit code."""
    folder = folder.resolve()
    before = _written(folder)
    try:
        interruption.take()
        return _run(folder, parser().parse_args(arguments))
    except RefusedError as refusal:
        print(f"build.py: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        names = [name for name, stamp in _written(folder).items() if stamp != before.get(name)]
        said = (
            f"{', '.join(names)} {'were' if names[1:] else 'was'} written" if names else "nothing was written"
        )
        print(f"build.py: interrupted; {said}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 one line for the person at the device, whatever it is
        print(f"build.py: a defect: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return DEFECT


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    """What a build leaves, by file and time: tells afterwards whether it is new."""
    there = (folder / name for name in (ENGINE, SIDECAR, f"{ENGINE}.log"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in there if path.exists()}


def _run(folder: Path, options: argparse.Namespace) -> int:
    described = _description(folder)
    if options.explicit:
        print(memory.notes(described))
        return DONE
    if importlib.util.find_spec(options.library) is None:
        raise RefusedError(MISSING.format(python=sys.executable) if options.library == LIBRARIES[0] else f"{options.library} is not installed")  # fmt: skip
    if options.verify and described["reference"] is None:
        raise RefusedError("no inputs are stored in this bundle: --verify has nothing to run", WRONG_USE)
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
            return _work(folder, Path(scratch), described, options)
    except OSError as error:
        raise RefusedError(f"{folder}: cannot be written ({error.strerror or error}); copy it to a disk that can", WRONG_USE) from error  # fmt: skip


def _description(folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if all(key in described for key in READ):
            return described
    except (ValueError, TypeError):
        pass
    raise RefusedError(
        f"{folder / DESCRIPTION}: is not the description that Lathe writes; copy the folder again", WRONG_USE
    )


def _work(folder: Path, scratch: Path, described: Mapping[str, Any], options: argparse.Namespace) -> int:
    request = {**described["request"], "library": options.library}
    if options.gpu:
        request |= {"dla": None, "flags": [name for name in request["flags"] if name != FALLBACK]}
    version = ask(worker.__name__, {"library": options.library}, scratch, showing.quiet, 300.0)["version"]
    if options.library == LIBRARIES[0] and (
        reason := versions.refusal(version, request["dla"], versions.on_jetson())
    ):
        raise RefusedError(reason)
    files = built.network(folder, described["model"])
    if options.verify and (folder / ENGINE).exists():
        built.check(folder, request, files)
    else:
        _build(folder, scratch, described, request, files, version, options)
    if not options.verify:
        return DONE
    return _verify(folder, scratch, described, request, options)


def _build(
    folder: Path,
    scratch: Path,
    described: Mapping[str, Any],
    request: dict[str, Any],
    files: Mapping[str, str],
    version: str,
    options: argparse.Namespace,
) -> None:
    """Everything is made in `scratch`, and moved out of it when it is whole."""
    if warning := memory.scarce(described):
        print(f"warning: {warning}", file=sys.stderr)
    engine, log = scratch / ENGINE, scratch / f"{ENGINE}.log"
    wants_log = options.log or described["log"]
    limit = described["time_limit_s"] if options.time_limit is None else options.time_limit
    print(f"building with {options.library} {version}; this takes minutes", flush=True)
    asked = request | {"model": str(folder / described["model"]), "engine": str(engine), "log": str(log) if wants_log else None}  # fmt: skip
    try:
        answer = ask(worker.__name__, asked, scratch, showing.progress, limit)
    except RefusedError as error:
        raise RefusedError(f"{described['model']} was not built: {error}", FAILED) from error
    finally:
        showing.end()
        if log.exists():
            log.replace(folder / log.name)
    size = engine.stat().st_size
    sidecar = scratch / SIDECAR
    sidecar.write_text(built.described(engine, request, answer, files), encoding="utf-8")
    sidecar.replace(folder / SIDECAR)
    engine.replace(folder / ENGINE)
    for warning in answer["warnings"]:
        print(f"TensorRT: {warning}", file=sys.stderr)
    if "on_gpu" in answer:
        print(showing.on_gpu(answer["on_gpu"]))
    print(
        f"{ENGINE}: {size / 1e6:.3g} MB, built {built.place(request['dla'])} in {answer['build_seconds']:.3g} s"
    )


def _verify(
    folder: Path,
    scratch: Path,
    described: Mapping[str, Any],
    request: Mapping[str, Any],
    options: argparse.Namespace,
) -> int:
    asked = {
        "library": options.library,
        "engine": str(folder / ENGINE),
        "dla": request["dla"],
        "reference": str(folder / described["reference"]["file"]),
        "inputs": described["reference"]["inputs"],
        "outputs": described["reference"]["outputs"],
        "budget_s": options.seconds,
    }
    found = ask(verifying.__name__, asked, scratch, showing.quiet)
    print(showing.verified(found, described["reference"], request["dla"]))
    low = showing.too_different(found, options.least_sqnr)
    if low:
        raise RefusedError(f"{low}: the engine does not compute what the model does", DIFFERS)
    return DONE
