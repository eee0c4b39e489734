"""Section error of phone.py: half-precision arithmetic as ncnn's ARM kernels compute, simulated
(passes/winograd/simulation.py).
"""

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networks_judge as judge
import numpy as np
import onnx
from phone_networks import Network, networks

PROFILE = "arm64-fp16"
LIMIT = 0.01
_ERRORS = re.compile(r"^([\w ]+): errors (.*?)(?:, all beyond|, no multiplications|, \d)")


def error(options: argparse.Namespace) -> None:
    print(
        f"| network | eligible layers | worst by ncnn's own choice | worst by by=error | worst if all were direct | own choice kept | made direct | sums in float32 | above {LIMIT:g} |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for network in networks(options):
        found = _layers(network, options.out)
        if not found:
            continue
        before = [errors[default] for _, default, errors in found]
        after = [errors[chosen] for chosen, _, errors in found]
        direct = [errors["direct"] for _, _, errors in found]
        chosen = [chosen for chosen, _, _ in found]
        cells = [
            network.name,
            str(len(found)),
            f"{max(before):.1e}",
            f"{max(after):.1e}",
            f"{max(direct):.1e}",
            str(sum(chosen == default for chosen, default, _ in found)),
            str(sum(one == "direct" != default for one, default, _ in found)),
            str(sum(one.endswith("float32") for one in chosen)),
            str(sum(one > LIMIT for one in after)),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _layers(network: Network, out: Path) -> Sequence[tuple[str, str, Mapping[str, float]]]:
    """(chosen, ncnn's own choice, errors by algorithm) of each layer with errors."""
    place = out / network.name / "error"
    shutil.rmtree(place, ignore_errors=True)
    passes = f"fold,winograd(by=error,profile={PROFILE},error={LIMIT})"
    model = _fixed(network, out)
    arguments = [str(model), "--passes", passes, "--target", "onnx", "--threads", "1", "--no-latency"]
    ran = judge.run([*arguments, "--calibration", f"{network.data}:calibration"], place)
    shutil.rmtree(place, ignore_errors=True)
    model.unlink()
    if ran.code:
        print(f"| {network.name} | exit {ran.code}: {ran.message} | | | | | | | |")
        return []
    edits: list[dict[str, Any]] = ran.report["steps"][-1]["edits"]
    found = []
    for edit in edits:
        if match := _ERRORS.match(edit["what"]):
            pairs = [one.rsplit(" ", 1) for one in match[2].split(", ")]
            errors = {name: float(value) for name, value in pairs}
            found.append((match[1], next(iter(errors)), errors))  # the runtime's own choice is named first
    return found


def _fixed(network: Network, out: Path) -> Path:
    """A copy whose inputs have the sizes of the data, all but the batch's: the choice is for known sizes."""
    model, path = onnx.load(network.model), out / f"{network.name}.fixed.onnx"
    with np.load(network.data) as data:
        for value in model.graph.input:
            key = f"calibration/{value.name}"
            if key in data:
                for dim, size in zip(value.type.tensor_type.shape.dim[1:], data[key].shape[1:], strict=True):
                    dim.dim_value = size
    onnx.save(model, path)
    return path
