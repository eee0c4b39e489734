"""Section litert-samples of phone.py: whether LiteRT's signal to noise in INT8 differs from ONNX Runtime's by more than chance."""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import networks_judge as judge
import networks_packages as packages
import numpy as np
from networks_real import _part
from phone_litert import FILE, RECIPES, _worst, answers, compared
from phone_networks import Network, networks

MOVED, DRAWS = 1e-3, 8
"""Relative change of each input value, an eighth of a step at most, and how often: what single levels then become is chance."""


def samples(options: argparse.Namespace) -> None:
    print(
        "| network | samples | dB in LiteRT | in ONNX Runtime | inputs moved by 1e-3: LiteRT | ONNX Runtime | difference | other samples | dB in LiteRT | in ONNX Runtime |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for network in networks(options):
        print("| " + " | ".join(_cells(network, options)) + " |", flush=True)


def _cells(network: Network, options: argparse.Namespace) -> Iterator[str]:
    place = options.out / network.name / "litert-samples"
    if not (place / FILE).exists():
        shutil.rmtree(place, ignore_errors=True)
        arguments = [str(network.model), "--passes", RECIPES["int8"], "--target", "litert", "--threads", "1"]
        arguments += ["--calibration", f"{network.data}:calibration", "--no-latency", "--no-html"]
        ran = judge.run(arguments, place)
        if ran.code:
            raise SystemExit(f"{network.name}: exit {ran.code}: {ran.message}")
    feeds = _part(network.data, "evaluation")
    sessions = compared(network, place, feeds)
    yield network.name
    yield str(len(next(iter(feeds.values()))))
    yield from (f"{one:.2f}" for one in _drawn(sessions, feeds))
    moved = np.array([_drawn(sessions, _moved(feeds, seed)) for seed in range(DRAWS)])
    yield from (f"{values.min():.2f} to {values.max():.2f}" for values in moved.T)
    change = moved[:, 0] - moved[:, 1]
    yield f"{change.mean():+.2f} +- {change.std(ddof=1) / np.sqrt(DRAWS):.2f}"
    others = _others(network, feeds, options.samples)
    yield str(options.samples) if others else ""
    yield from (f"{one:.2f}" for one in _drawn(sessions, others)) if others else ("", "")


def _drawn(sessions: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> list[float]:
    """dB of LiteRT and of ONNX Runtime."""
    wanted = answers(sessions["float"], feeds)
    return [_worst(answers(sessions[label], feeds), wanted) for label in ("litert", "ort")]


def _moved(feeds: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Floats alone."""
    generator = np.random.default_rng(seed)
    return {
        name: values
        if not np.issubdtype(values.dtype, np.floating)
        else (values * (1 + MOVED * generator.standard_normal(values.shape))).astype(values.dtype)
        for name, values in feeds.items()
    }


def _others(network: Network, feeds: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Drawn as the data were, from another seed; of the repository's networks none."""
    generator = np.random.default_rng(1)
    if network.kind == "own":
        return {}
    if network.kind == "onnx":
        return {
            name: generator.standard_normal((count, *values.shape[1:])).astype(np.float32)
            for name, values in feeds.items()
        }
    (known,) = (one for one in packages.REAL if one.name == network.name)
    return {name: np.stack([drawn(generator) for _ in range(count)]) for name, drawn in known.inputs.items()}
