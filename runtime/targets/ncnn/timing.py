"""Times a model's convolutions by each algorithm, in ncnn on this machine and on one thread. Implements KernelTimer of
passes/core/services.py.

All variants are one network, written once: they differ in a few numbers of `.param` (algorithms.py), and load the same
`.bin`. They are loaded several times, each time in another order: where a network's weights come to lie in memory
alone makes a layer up to 15 % slower or faster.
"""

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import PassError, TargetError, first_few
from onnx_lathe.kernels import NAMES, PROFILES
from onnx_lathe.runtime.running.bfloat16 import storable
from onnx_lathe.runtime.targets.core.sizes import sizes_of
from onnx_lathe.runtime.targets.ncnn.algorithms import convolutions, follow
from onnx_lathe.runtime.targets.ncnn.convert import Conversion, convert
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, param_text, write_weights
from onnx_lathe.runtime.targets.ncnn.process import ask
from onnx_lathe.runtime.targets.ncnn.running import Settings, package
from onnx_lathe.runtime.targets.ncnn.session import ports_as_json

LOADS = 8
"""For networks of any size: Student's test has one value of each load, however many rounds that has. Half as many loads
would leave two to three times as much in doubt.
"""
LAYERS = {"seconds": 4.0, "least": 6, "most": 25}
WHOLE = {"seconds": 2.0, "least": 6, "most": 40}
"""Of each load, rounds go on for so long, once the least are in."""
LIMIT_S = 1800.0
MACHINES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm64", "arm64": "arm64"}
"""platform.machine() -> how the profiles of such a processor begin."""

Choices = Mapping[str, str]


def why_not(profile: str) -> str | None:
    """Why this machine cannot time kernels for a profile; None if it can."""
    machine = platform.machine().lower()
    if not profile.startswith(MACHINES.get(machine, machine)):
        return (
            f"times are those of this machine ({machine}), and profile={profile} is for another; take by=cost or "
            "by=error, or give with tuning=FILE what was chosen on the device"
        )
    try:
        package()
    except TargetError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Written:
    """What a model becomes without choices."""

    model: onnx.ModelProto
    profile: str
    conversion: Conversion
    feeds: Mapping[str, np.ndarray]


class NetworkTimer:
    """`lowered` gives the model as ncnn's target wants it, for a profile."""

    def __init__(
        self, lowered: Callable[[onnx.ModelProto, str], onnx.ModelProto], status: Callable[[str], None]
    ) -> None:
        self.lowered, self.status = lowered, status
        self._last: _Written | None = None

    def layers(
        self, model: onnx.ModelProto, profile: str, variants: Sequence[Choices]
    ) -> Mapping[str, np.ndarray]:
        found = self._loads("layers", model, profile, variants, LAYERS)
        return {name: _stacked([one[name] for one in found]) for name in found[0]}

    def whole(self, model: onnx.ModelProto, profile: str, variants: Sequence[Choices]) -> np.ndarray:
        return _stacked(self._loads("the whole network", model, profile, variants, WHOLE))

    def _loads(
        self,
        what: str,
        model: onnx.ModelProto,
        profile: str,
        variants: Sequence[Choices],
        budget: Mapping[str, float],
    ) -> list[Any]:
        """What each load gives, the variants in their own order. Their files are written once: large networks have weights
        of hundreds of megabytes.
        """
        written, found = self._written(model, profile), []
        with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
            request = _files(written, variants, Path(scratch))
            for number in range(LOADS):
                self.status(
                    f"timing {what} in ncnn: {number + 1} of {LOADS}, {len(variants)} networks in turn"
                )
                order = [(place + number) % len(variants) for place in range(len(variants))]
                turned: dict[str, Any] = {
                    name: [request[name][place] for place in order] for name in ("params", "layers")
                }
                if budget is not LAYERS:
                    turned["layers"] = None
                times = ask(request | turned | {"budget": budget}, "time the model", LIMIT_S)
                back = np.argsort(order)
                found.append(
                    {name: np.array(rounds)[:, back] for name, rounds in times.items()}
                    if isinstance(times, dict)
                    else np.array(times)[:, back]
                )
        return found

    def _written(self, model: onnx.ModelProto, profile: str) -> _Written:
        if self._last is not None and self._last.model is model and self._last.profile == profile:
            return self._last
        lowered = self.lowered(model, profile)
        sizes = sizes_of(lowered, {})
        found = convert(lowered, sizes.first, sizes.second)
        if found.refused:
            listed = first_few([f"'{node}' ({op}): {reason}" for node, op, reason in found.refused])
            raise PassError(f"by=time runs the network in ncnn, which cannot compute {listed}; take by=cost")
        types = {value.name: value.type.tensor_type.elem_type for value in lowered.graph.input}
        self._last = _Written(model, profile, found, _feeds(sizes.first, types))
        return self._last


def _files(written: _Written, variants: Sequence[Choices], folder: Path) -> dict[str, Any]:
    """Writes the variants' networks and their input. Returns what the worker is told of them, in their own order."""
    found, profile = written.conversion, written.profile
    with (folder / "model.bin").open("wb") as file:
        write_weights(found.layers, file, False)
    params, blobs = [], []
    for number, choices in enumerate(variants):
        layers = _chosen(found, choices, profile)
        params.append(str(folder / f"{number}.param"))
        Path(params[-1]).write_text(param_text(layers), encoding="utf-8")
        places = convolutions(layers, found.results)
        blobs.append({name: (one.bottoms[0], one.tops[0]) for name, (one, _) in places.items()})
    np.savez(
        folder / "feeds.npz",
        **{f"input{place}": storable(written.feeds[port.tensor]) for place, port in enumerate(found.inputs)},  # type: ignore[arg-type]
    )
    return {
        "params": params,
        "weights": str(folder / "model.bin"),
        "ports": ports_as_json(found.inputs, found.outputs),
        "feeds": str(folder / "feeds.npz"),
        "settings": asdict(Settings(threads=1, half=PROFILES[profile].arithmetic == "float16")),
        "layers": blobs,
    }


def _stacked(loads: Sequence[np.ndarray]) -> np.ndarray:
    """[loads, rounds, variants], as many rounds of each as the load has that has fewest."""
    return np.stack([rounds[: min(map(len, loads))] for rounds in loads])


def _chosen(found: Conversion, choices: Choices, profile: str) -> list[Layer]:
    layers = [
        replace(layer, params=dict(layer.params), bottoms=list(layer.bottoms)) for layer in found.layers
    ]
    words = {name: m for m, name in NAMES.items()}
    follow(
        layers,
        {name: words[word] for name, word in choices.items()},
        found.results,
        PROFILES[profile],
        profile,
    )
    return layers


def _feeds(shapes: Mapping[str, Sequence[int]], types: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Standard normal values; zeros for integers."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        if np.issubdtype(onnx.helper.tensor_dtype_to_np_dtype(types[name]), np.floating)
        else np.zeros(shape, np.int32)
        for name, shape in shapes.items()
    }
