"""The options of `build.py`."""

import argparse
import math
import sys
from typing import NoReturn

from onnx_lathe.runtime.targets.jetson.device.refusal import WRONG_USE

LIBRARIES = ("tensorrt", "tensorrt_rtx")
MOST_SECONDS = 1e7
"""Some 115 days: the timer that ends a build takes no time without bound."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(
            f"build.py: {' '.join(message.split())}; python3 build.py --help lists the options",
            file=sys.stderr,
        )
        sys.exit(WRONG_USE)


def _decibels(text: str) -> float:
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"takes a number of dB, not {text}")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"takes seconds, above 0 and up to {MOST_SECONDS:g}, not {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, not '{text}'") from None


def parser() -> argparse.ArgumentParser:
    """Its errors end the command with one line and the exit code of wrong use."""
    parser = _Parser(
        prog="build.py", description="Builds model.engine with TensorRT, on the device that will run it."
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the engine on the stored inputs: SQNR, top-1, latency; builds it first if it is not there",
    )
    parser.add_argument(
        "--least-sqnr",
        type=_decibels,
        default=20.0,
        metavar="DB",
        help="with --verify: exit code 3 for an output below it (default 20)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=3.0,
        metavar="S",
        help="with --verify: how long each way of running is timed (default 3)",
    )
    parser.add_argument("--gpu", action="store_true", help="build for the GPU where the bundle is for DLA")
    parser.add_argument(
        "--explicit",
        action="store_true",
        help="say what the network needs of each device's memory, and build nothing",
    )
    parser.add_argument(
        "--log", action="store_true", help="write all that the builder says to model.engine.log"
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="S",
        help="end a build that takes longer (default: as the bundle says)",
    )
    parser.add_argument(
        "--library",
        choices=LIBRARIES,
        default=LIBRARIES[0],
        help="tensorrt_rtx stands in on a desktop; no Jetson loads its engine",
    )
    return parser  # fmt: skip
