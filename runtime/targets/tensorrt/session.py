"""An engine as a session: the three methods of onnxruntime.InferenceSession that measuring uses, so that metrics and
gates are the same code for it, and times that leave out the pipe between the processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.tensorrt.engine_process import EngineProcess
from onnx_lathe.runtime.targets.tensorrt.pieces import (
    Feeds,
    Piece,
    are_alike,
    is_mixed,
    joined,
    limits,
    moved,
)

WAYS = ("call", "cuda_graph", "gpu_alone")
"""What is timed: execution.Engine.times."""
_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Value:
    """An input or output, as onnxruntime.NodeArg describes one."""

    name: str
    shape: Sequence[int | str]
    type: str


class EngineSession:
    """Runs an engine in a process of its own. A batch larger than the engine takes runs piece by piece."""

    def __init__(self, process: EngineProcess, engine: Path, core: int | None = None) -> None:
        """Raises ModelError if TensorRT does not load the engine. `core`: of the DLA that it was built for."""
        self.process = process
        told = process.ask({"do": "open", "engine": str(engine.resolve()), "dla": core})[0]
        self.number: int = told["number"]
        self._inputs, self._outputs = told["inputs"], told["outputs"]
        self._profiles: list[dict[str, list[list[int]]]] = told["profiles"]
        self._open = [port["name"] for port in self._inputs if port["shape"] and port["shape"][0] < 0]
        """Inputs whose first size is open: those of a batch."""
        self._cut = [port["name"] for port in self._outputs if port["shape"] and port["shape"][0] < 0]
        """Outputs that may have a batch, likewise."""
        self._mixed: dict[bool, set[str]] = {}
        """Outputs in which the samples of a batch have to do with one another, tried with samples that are alike, or
        not.
        """

    def get_inputs(self) -> list[Value]:
        return [_value(port, self._sizes(port)) for port in self._inputs]

    def get_outputs(self) -> list[Value]:
        return [_value(port, port["shape"]) for port in self._outputs]

    @property
    def usual_shapes(self) -> dict[str, list[int]]:
        """By input, the shape that the engine is tuned for, of as few samples as it takes."""
        return {
            name: [least[0], *tuned[1:]] if name in self._open else tuned
            for name, (least, tuned, _) in self._profiles[0].items()
        }

    def _sizes(self, port: Mapping[str, Any]) -> list[int]:
        """-1 where profiles take more than one size."""
        found = [profile[port["name"]] for profile in self._profiles]
        return [
            size
            if size >= 0
            else low
            if all(least[axis] == greatest[axis] == low for least, _, greatest in found)
            else -1
            for axis, (size, low) in enumerate(zip(port["shape"], found[0][0], strict=True))
        ]

    def run(self, names: Sequence[str] | None, feeds: Feeds) -> list[np.ndarray]:
        """Raises ModelError for feeds that the engine does not take, TargetError where the GPU fails."""
        pieces = self._pieces(feeds)
        answers = [self._call(piece.feeds) for piece in pieces]
        made = [outputs for outputs, _ in answers]
        wanted = names or [port["name"] for port in self._outputs]
        if len(pieces) == 1 and not pieces[0].padded:
            return [made[0][name] for name in wanted]
        for name in wanted:
            if name in answers[0][1]["found"]:
                raise ModelError(f"the shape of output '{name}' depends on values, and {limits(pieces)}")
        joint = {
            name: joined(name, name in self._cut, pieces, [one[name] for one in made]) for name in wanted
        }
        self._refuse_mixed(wanted, pieces, made)
        return [joint[name] for name in wanted]

    def _refuse_mixed(
        self, names: Sequence[str], pieces: Sequence[Piece], made: Sequence[Mapping[str, np.ndarray]]
    ) -> None:
        """Raises ModelError for outputs whose values for a sample change with the others, which pieces leave out or
        repeat; tried once with samples that differ, and once with such as do not, which tell less. An engine that
        takes one sample alone cannot be asked.
        """
        piece, outputs = max(zip(pieces, made, strict=True), key=lambda pair: pair[0].room)
        if piece.room < 2:
            return
        alike = are_alike(piece, self._open)
        if alike not in self._mixed:
            again, _ = self._call(moved(piece, self._open))
            self._mixed[alike] = {
                name for name in self._cut if is_mixed(outputs[name], again[name], piece.room)
            }
        for name in names:
            if name in self._mixed[alike]:
                raise ModelError(
                    f"output '{name}' of a sample depends on its place in the batch or on the other samples, and {limits(pieces)}"
                )

    def call_ms(self, feeds: Feeds) -> float:
        """Milliseconds of one call, with the copies to the GPU and back, and without what it costs to hand arrays to
        another process.
        """
        return sum(self._call(piece.feeds)[1]["ms"] for piece in self._pieces(feeds))

    def ways_ms(self, feeds: Feeds, budget_s: float) -> dict[str, np.ndarray | str]:
        """By WAYS, milliseconds of calls in turn [calls], or why it cannot be run so. Of feeds that are run in
        pieces, the first piece.
        """
        found: dict[str, np.ndarray | str] = {}
        piece = self._pieces(feeds)[0].feeds
        for way in WAYS:
            request = {"do": "times", "number": self.number, "how": way, "budget_s": budget_s}
            try:
                found[way] = self.process.ask(request, piece)[1]["ms"]
            except ModelError as error:
                found[way] = str(error)
        return found

    def close(self) -> None:
        self.process.close()

    def _call(self, feeds: Feeds) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        answer, outputs = self.process.ask({"do": "run", "number": self.number}, feeds)
        return outputs, answer

    def _count(self, feeds: Feeds) -> int | None:
        """Of samples; None where the inputs have no batch in common."""
        counts = {len(feeds[name]) for name in self._open if name in feeds}
        return counts.pop() if len(counts) == 1 else None

    def _pieces(self, feeds: Feeds) -> list[Piece]:
        """The feeds, cut along the batch so that a profile takes each; the last sample is repeated where a profile wants
        more than there are.
        """
        given = {
            port["name"]: np.asarray(feeds[port["name"]]) for port in self._inputs if port["name"] in feeds
        }
        count = self._count(given)
        if (
            len(given) < len(self._inputs)
            or not count
            or any(self._takes(one, given) for one in self._profiles)
        ):
            return [Piece(given)]  # what is wrong with it, if anything, the engine says
        for profile in self._profiles:
            least, greatest = _batch(profile, self._open)
            pieces = -(-count // greatest)
            ends = [count * index // pieces for index in range(pieces + 1)]
            parts = [Piece.of(given, self._open, first, last, least) for first, last in pairwise(ends)]
            if all(self._takes(profile, part.feeds) for part in parts):
                return parts
        return [Piece(given)]

    @staticmethod
    def _takes(profile: Mapping[str, list[list[int]]], feeds: Feeds) -> bool:
        return all(
            len(least) == feeds[name].ndim
            and all(
                low <= size <= high
                for low, size, high in zip(least, feeds[name].shape, greatest, strict=True)
            )
            for name, (least, _, greatest) in profile.items()
        )


def _batch(profile: Mapping[str, list[list[int]]], names: Sequence[str]) -> tuple[int, int]:
    return max(profile[name][0][0] for name in names), min(profile[name][2][0] for name in names)


def _value(port: Mapping[str, Any], sizes: Sequence[int]) -> Value:
    name, kind = port["name"], port["dtype"]
    shape = [f"{name}_{axis}" if size < 0 else size for axis, size in enumerate(sizes)]
    return Value(name, shape, f"tensor({_TYPES.get(kind, kind)})")
