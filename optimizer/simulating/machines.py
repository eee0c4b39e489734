"""Machines as a user describes them: `--link 100Gb/s,2us`, `--rate 10TFLOP/s`, `--memory 16GB`."""

import math
import re

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel.costs import Machine

_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_PREFIX = "([kMGTP]?)"
LARGEST = 65536
"""Machines."""


def parse_machine(rate: str, link: str, memory: str | None) -> Machine:
    """Raises UsageError naming the option whose value is no such thing."""
    latency, bandwidth = parse_link(link)
    return Machine(_parsed(rate, "FLOP/s", "--rate", "10TFLOP/s"), latency, bandwidth, _memory(memory))


def parse_link(text: str) -> tuple[float, float]:
    """(latency in seconds, bytes a second) of "100Gb/s,2us": bits with b, bytes with B. Raises UsageError."""
    speed, comma, delay = (part.strip() for part in text.partition(","))
    bits = re.fullmatch(f"{_NUMBER} ?{_PREFIX}(b|B)/s", speed)
    wait = re.fullmatch(f"{_NUMBER} ?(s|ms|us|ns)", delay) if comma else None
    if bits is None or wait is None or not float(bits[1]):
        raise UsageError(f"--link takes a bandwidth and a latency, such as 100Gb/s,2us, not '{text}'")
    bandwidth = float(bits[1]) * _SCALES[bits[2]] / (8 if bits[3] == "b" else 1)
    return float(wait[1]) * _TIMES[wait[2]], bandwidth


def _memory(text: str | None) -> float:
    return math.inf if text is None else _parsed(text, "B", "--memory", "16GB")


def _parsed(text: str, unit: str, option: str, example: str) -> float:
    found = re.fullmatch(f"{_NUMBER} ?{_PREFIX}{unit}", text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"{option} takes a number with its unit, such as {example}, not '{text}'")
    return float(found[1]) * _SCALES[found[2]]


def machine_counts(most: int) -> list[int]:
    """Powers of two, and the number itself. Raises UsageError for what is no number of machines."""
    if not 1 <= most <= LARGEST:
        raise UsageError(f"--machines takes a number from 1 to {LARGEST:,}, not {most}")
    return sorted({1 << power for power in range(most.bit_length())} | {most})
