"""Runs the model that lies beside this script on stored inputs, and compares what it computes with stored outputs.

    python model.NAME.verify.py [--threads N] [--json] [DESCRIPTION.json]

It needs NumPy and what runs the model: `pip install ncnn`, `ai-edge-litert`, or `coremltools` on a Mac; nothing of Lathe.
The stored outputs are ONNX Runtime's, of the model that the file was written from. Exit code: 0 all agree, 1 one does
not, 2 a file is missing or damaged, or cannot be run here.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
AGREE, DIFFER, REFUSED = 0, 1, 2
Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
"""One call: inputs to outputs, by their names in the file, as the file holds them."""


class VerifyError(Exception):
    """Why nothing can be compared, in one line."""


def as_file(values: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """A tensor of the model as the file takes it: axes in the file's order, and integers where it is quantized."""
    axes = list(port["axes"])
    others = [axis for axis in range(values.ndim) if axis not in axes]
    moved = values.transpose(axes + others).reshape([values.shape[axis] for axis in axes])
    kind = np.dtype(port["type"])
    if port["scale"] is not None:
        limits = np.iinfo(kind)
        steps = np.rint(moved.astype(np.float32) / np.float32(port["scale"])) + port["zero_point"]
        moved = np.clip(steps, limits.min, limits.max)
    return np.ascontiguousarray(moved.astype(kind))


def as_model(values: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """The inverse: real numbers in the order of the model's axes. Raises VerifyError for a tensor of another rank."""
    axes, rank = list(port["axes"]), len(port["tensor_shape"])
    values = np.asarray(values)
    if not axes:
        values = values.reshape(())
    if values.ndim != len(axes):
        raise VerifyError(f"output '{port['name']}' has {values.ndim} dimensions, not {len(axes)}")
    if port["scale"] is not None:
        values = (values.astype(np.float32) - port["zero_point"]) * np.float32(port["scale"])
    others = [axis for axis in range(rank) if axis not in axes]
    wide = values.reshape(values.shape + (1,) * len(others))
    return wide.transpose(np.argsort(axes + others)) if rank else wide


def litert(file: Path, described: Mapping[str, Any], threads: int) -> tuple[Run, str]:
    package = import_module("ai_edge_litert.interpreter")
    runner = package.Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()
    return lambda feeds: runner(**feeds), f"LiteRT, ai-edge-litert {version('ai-edge-litert')}"


def ncnn(file: Path, described: Mapping[str, Any], threads: int) -> tuple[Run, str]:
    package = import_module("ncnn")
    net = package.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(file)) != 0 or net.load_model(str(file.with_suffix(".bin"))) != 0:
        raise VerifyError(f"{file.name}: ncnn does not load it")

    def run(feeds: Arrays) -> Arrays:
        extractor = net.create_extractor()
        for name, array in feeds.items():
            extractor.input(name, package.Mat(array.reshape(array.shape or (1,))).clone())
        found = {}
        for port in described["outputs"]:
            failed, mat = extractor.extract(port["name"])
            if failed:
                raise VerifyError(f"ncnn cannot compute its blob '{port['name']}' (error {failed})")
            values = np.array(mat)  # four bytes of any type come out as float32
            found[port["name"]] = values.view(np.int32) if port["type"] == "int32" else values
        return found

    return run, f"ncnn {package.__version__}"


def coreml(file: Path, described: Mapping[str, Any], threads: int) -> tuple[Run, str]:
    if sys.platform != "darwin":
        raise VerifyError("Core ML runs on a Mac alone")
    package = import_module("coremltools")
    return package.models.MLModel(str(file)).predict, f"Core ML, coremltools {package.__version__}"


RUNTIMES = {"litert": litert, "ncnn": ncnn, "coreml": coreml}


def check_files(folder: Path, described: Mapping[str, Any]) -> None:
    """Raises VerifyError for a file that is missing, or of other bytes than those written."""
    wanted = {name: one["sha256"] for name, one in described["files"].items()}
    wanted[described["examples"]["file"]] = described["examples"]["sha256"]
    for name, digest in wanted.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise VerifyError(f"{folder / name}: {error.strerror}; copy the files again, together") from error
        if found != digest:
            raise VerifyError(
                f"{folder / name}: is not the file that was written; copy the files again, together"
            )


def error_of(found: np.ndarray, wanted: np.ndarray, said: Mapping[str, Any]) -> float:
    """By the measure that `said` names: the largest difference relative to the largest value, or the length of the
    difference relative to the length; `floor` is the least size of a value there. Of integers and bools, the share
    that differs. Infinite for another shape, or where one is no number.
    """
    if found.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(found.astype(wanted.dtype) != wanted)) if wanted.size else 0.0
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    if said["measure"] == "length":
        size = max(float(np.linalg.norm(other)), said["floor"] * other.size**0.5)
        error = float(np.linalg.norm(one - other))
    else:
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        size = max(float(np.abs(other[np.isfinite(other)]).max(initial=0.0)), said["floor"])
        error = float(np.where(same, 0.0, np.abs(one - other)).max(initial=0.0))
    share = error / (size or 1.0)
    return share if np.isfinite(share) else float("inf")


def compare(run: Run, described: Mapping[str, Any], stored: Arrays) -> list[dict[str, Any]]:
    """By output, the worst call's error, what is allowed, and whether it agrees."""
    worst = {port["tensor"]: 0.0 for port in described["outputs"]}
    for call in range(described["examples"]["calls"]):
        feeds = {
            port["name"]: as_file(stored[f"input_{call}_{place}"], port)
            for place, port in enumerate(described["inputs"])
        }
        got = run(feeds)
        for place, port in enumerate(described["outputs"]):
            said = described["examples"]["outputs"][port["tensor"]]
            found = as_model(got[port["name"]], port)
            error = error_of(found, stored[f"output_{call}_{place}"], said)
            worst[port["tensor"]] = max(worst[port["tensor"]], error)
    allowed = {name: one["allowed"] for name, one in described["examples"]["outputs"].items()}
    return [
        {"output": name, "error": error, "allowed": allowed[name], "agrees": error <= allowed[name]}
        for name, error in worst.items()
    ]


def verify(table: Path, threads: int = 1) -> tuple[list[dict[str, Any]], str]:
    """(what `compare` gives, what ran the model). Raises VerifyError where nothing can be compared."""
    try:
        described = json.loads(table.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise VerifyError(f"{table}: has format {described['format']}, this script reads {FORMAT}")
        if not described["examples"]:
            raise VerifyError(f"{table}: no inputs and outputs are stored with the model")
        check_files(table.parent, described)
        with np.load(table.parent / described["examples"]["file"]) as file:
            stored = {name: file[name] for name in file.files}
        opened = RUNTIMES[described["target"]]
    except OSError as error:
        raise VerifyError(f"{table}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerifyError(f"{table}: is no description of a model ({error})") from error
    try:
        run, name = opened(table.parent / described["file"], described, threads)
        return compare(run, described, stored), name
    except ImportError as error:
        raise VerifyError(f"{error}; pip install {PACKAGES[described['target']]}") from error
    except (ValueError, RuntimeError) as error:
        raise VerifyError(f"{described['file']}: {error}") from error


PACKAGES = {"litert": "ai-edge-litert", "ncnn": "ncnn", "coreml": "coremltools"}


def main(arguments: list[str]) -> int:
    beside = Path(__file__).with_name(Path(__file__).name.replace(".verify.py", ".json"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("description", nargs="?", type=Path, default=beside, help=f"default: {beside.name}")
    parser.add_argument("--threads", type=int, default=1, help="of the processor, default: 1")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args(arguments)
    try:
        rows, name = verify(given.description, given.threads)
    except VerifyError as error:
        print(error, file=sys.stderr)
        return REFUSED
    agree = all(row["agrees"] for row in rows)
    if given.json:
        errors = [row | {"error": row["error"] if np.isfinite(row["error"]) else None} for row in rows]
        print(json.dumps({"in": name, "agrees": agree, "outputs": errors}))
        return AGREE if agree else DIFFER
    print(f"in {name}")
    for row in rows:
        verdict = "agrees" if row["agrees"] else "DIFFERS"
        print(f"{verdict}  {row['output']}: error {row['error']:.2g}, {row['allowed']:.2g} allowed")
    return AGREE if agree else DIFFER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
