"""The minimal filtering that ncnn's kernels compute, operation by operation: what the simulation of errors and the
training by tiles both do.

    Y = A^T ((G g G^T) * (B^T d B)) A        per tile d of the data, g a kernel; summed over channels before A

A transform is a program of fused steps, each `base + factor * term` and rounded once, as ncnn writes them; the same
for float32 and float16, on x86 and ARM. Order, as there: kernels and data by rows and then by columns, results by
columns and then by rows; channels one after another, each product added and rounded. Kernels are transformed in
float32 and rounded once to what the arithmetic stores.

F(4, 3) interpolates at 0, +-sqrt(2)/2, +-sqrt(2) and infinity; F(2, 3) and F(6, 3) at Lavin's points.
Source (July 2026), lines of kernel, data, result:
                                                  F(2, 3)            F(4, 3)            F(6, 3)
    src/layer/arm/convolution_3x3_winograd_fp16s.h  2046, 2138, 2557   3041, 3141, 3736   4396, 4501, 5216
    src/layer/arm/convolution_3x3_winograd.h        4576, 4668, 5169   5703, 5803, 6602   7390, 7495, 8457
    src/layer/arm/convolution_3x3_winograd_bf16s.h     -,    6,  509      -, 1039, 1840      -, 2623, 3589
    src/layer/x86/convolution_3x3_winograd.h        2440, 2532, 3119   3805, 3905, 4698   5674, 5779, 6790
    src/layer/x86/convolution_3x3_winograd_bf16s.h     -,   18,  617      -, 1335, 2140      -, 3158, 4181
bfloat16 is only stored there, and computed in float32; its kernels are transformed by the float32 files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

TAPS = 3
SQ2 = sqrt(2)


class Step(NamedTuple):
    """base + factor * term, rounded once; the product alone without a base. Both are numbers of earlier values."""

    base: int | None
    factor: float
    term: int


@dataclass(frozen=True)
class Program:
    """What it is given are the values 0 to inputs - 1; each step makes the next. `results` are numbers of values."""

    inputs: int
    steps: tuple[Step, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Tiles:
    """F(m x m, 3 x 3). `kernel` makes n = m + 2 values of 3, `data` n of n, `output` m of n."""

    m: int
    kernel: Program
    data: Program
    output: Program

    @property
    def size(self) -> int:
        return self.data.inputs


def _program(inputs: int, lines: Sequence[tuple[str, str | None, float, str]], results: str) -> Program:
    """Lines are (name, base, factor, term). A name may be given a new value; r0, r1, ... are what it is given."""
    numbers = {f"r{at}": at for at in range(inputs)}
    steps: list[Step] = []
    for name, base, factor, term in lines:
        steps.append(Step(None if base is None else numbers[base], factor, numbers[term]))
        numbers[name] = inputs + len(steps) - 1
    return Program(inputs, tuple(steps), tuple(numbers[name] for name in results.split()))


def _kernel(rows: Sequence[tuple[float, float, float]]) -> Program:
    """r0 and r2 as they are around rows of three products."""
    lines: list[tuple[str, str | None, float, str]] = []
    for at, (first, second, third) in enumerate(rows):
        name = f"z{at}"
        lines += [(name, None, first, "r0"), (name, name, second, "r1"), (name, name, third, "r2")]
    return _program(TAPS, lines, " ".join(("r0", *(f"z{at}" for at in range(len(rows))), "r2")))


F23 = Tiles(
    2,
    _kernel([(1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2)]),
    _program(
        4,
        [("t0", "r0", -1, "r2"), ("t1", "r1", 1, "r2"), ("t2", "r2", -1, "r1"), ("t3", "r3", -1, "r1")],
        "t0 t1 t2 t3",
    ),
    _program(
        4,
        [("t0", "r0", 1, "r1"), ("t0", "t0", 1, "r2"), ("t1", "r1", -1, "r2"), ("t1", "t1", 1, "r3")],
        "t0 t1",
    ),
)

F43 = Tiles(
    4,
    _kernel(
        [
            (-2 / 3, -SQ2 / 3, -1 / 3),
            (-2 / 3, SQ2 / 3, -1 / 3),
            (1 / 6, SQ2 / 6, 1 / 3),
            (1 / 6, -SQ2 / 6, 1 / 3),
        ]
    ),
    _program(
        6,
        [
            ("12a", None, SQ2, "r1"),
            ("12a", "12a", -SQ2 / 2, "r3"),
            ("12b", "r4", -2, "r2"),
            ("34a", None, SQ2, "r3"),
            ("34a", "34a", -SQ2 / 2, "r1"),
            ("34b", "r4", -0.5, "r2"),
            ("t0", "r0", 1, "r4"),
            ("t0", "t0", -2.5, "r2"),
            ("t1", "12b", -1, "12a"),
            ("t2", "12b", 1, "12a"),
            ("t3", "34b", 1, "34a"),
            ("t4", "34b", -1, "34a"),
            ("t5", "r1", 1, "r5"),
            ("t5", "t5", -2.5, "r3"),
        ],
        "t0 t1 t2 t3 t4 t5",
    ),
    _program(
        6,
        [
            ("02a", "r1", 1, "r2"),
            ("02b", "r3", 1, "r4"),
            ("13a", "r1", -1, "r2"),
            ("13b", "r3", -1, "r4"),
            ("t0", "r0", 1, "02a"),
            ("t0", "t0", 1, "02b"),
            ("t1", None, SQ2 / 2, "13a"),
            ("t1", "t1", SQ2, "13b"),
            ("t2", None, 0.5, "02a"),
            ("t2", "t2", 2, "02b"),
            ("t3", "r5", SQ2 / 4, "13a"),
            ("t3", "t3", 2 * SQ2, "13b"),
        ],
        "t0 t1 t2 t3",
    ),
)

F63 = Tiles(
    6,
    _kernel(
        [
            (-2 / 9, -2 / 9, -2 / 9),
            (-2 / 9, 2 / 9, -2 / 9),
            (1 / 90, 1 / 45, 2 / 45),
            (1 / 90, -1 / 45, 2 / 45),
            (1 / 45, 1 / 90, 1 / 180),
            (1 / 45, -1 / 90, 1 / 180),
        ]
    ),
    _program(
        8,
        [
            ("12a", "r2", 1, "r6"),
            ("12a", "12a", -4.25, "r4"),
            ("12b", "r1", 1, "r5"),
            ("12b", "12b", -4.25, "r3"),
            ("34a", "r6", 0.25, "r2"),
            ("34a", "34a", -1.25, "r4"),
            ("34b", None, 0.5, "r1"),
            ("34b", "34b", -2.5, "r3"),
            ("34b", "34b", 2, "r5"),
            ("56a", "r2", -1.25, "r4"),
            ("56a", "r6", 4, "56a"),
            ("56b", None, 2, "r1"),
            ("56b", "56b", -2.5, "r3"),
            ("56b", "56b", 0.5, "r5"),
            ("t0", "r0", -1, "r6"),
            ("42", "r4", -1, "r2"),
            ("t0", "t0", 5.25, "42"),
            ("t1", "12a", 1, "12b"),
            ("t2", "12a", -1, "12b"),
            ("t3", "34a", 1, "34b"),
            ("t4", "34a", -1, "34b"),
            ("t5", "56a", 1, "56b"),
            ("t6", "56a", -1, "56b"),
            ("t7", "r7", -1, "r1"),
            ("35", "r3", -1, "r5"),
            ("t7", "t7", 5.25, "35"),
        ],
        "t0 t1 t2 t3 t4 t5 t6 t7",
    ),
    _program(
        8,
        [
            ("024a", "r1", 1, "r2"),
            ("135a", "r1", -1, "r2"),
            ("024b", "r3", 1, "r4"),
            ("135b", "r3", -1, "r4"),
            ("024c", "r5", 1, "r6"),
            ("135c", "r5", -1, "r6"),
            ("t0", "r0", 1, "024a"),
            ("bc", "024b", 32, "024c"),
            ("t0", "t0", 1, "bc"),
            ("t1", "135a", 2, "135b"),
            ("t1", "t1", 16, "135c"),
            ("t2", "024a", 4, "024b"),
            ("t2", "t2", 8, "024c"),
            ("t3", "135a", 8, "135b"),
            ("t3", "t3", 4, "135c"),
            ("t4", "024a", 16, "024b"),
            ("t4", "t4", 2, "024c"),
            ("t5", "r7", 1, "135a"),
            ("cb", "135c", 32, "135b"),
            ("t5", "t5", 1, "cb"),
        ],
        "t0 t1 t2 t3 t4 t5",
    ),
)

NCNN = {tiles.m: tiles for tiles in (F23, F43, F63)}
"""By m of F(m, 3)."""
