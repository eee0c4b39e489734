"""What a gate can be about: each metric's unit, which way is better, and what lets it be measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Form = Literal["value", "drop", "rise", "ratio"]
Kind = Literal["fraction", "number", "decibel", "bytes", "time", "count", "ratio"]


@dataclass(frozen=True)
class Metric:
    """`kind` gives the unit, `forms` what may be asked of it, `needs` what lets it be measured. `per_output`:
    whether an output can be named. `of_labels`: whether labels of a form of its own are read.
    """

    kind: Kind
    higher_is_better: bool
    forms: tuple[Form, ...]
    needs: str
    per_output: bool = False
    of_labels: bool = False
    either: bool = False
    """Whether both "<=" and ">=" may be asked of its value: only the user knows which is better."""


_LOST: tuple[Form, ...] = ("value", "drop")
_GAINED: tuple[Form, ...] = ("value", "rise")
_RATIO: tuple[Form, ...] = ("value", "ratio")
_COMPARED = "evaluation data (--data or --eval) and a model with float outputs"


def _of_labels(needs: str, *, errors: bool = False) -> Metric:
    forms = _GAINED if errors else _LOST
    return Metric("fraction", not errors, forms, f"evaluation data whose labels are {needs}", of_labels=True)


USER = Metric(
    "number",
    True,
    ("value", "drop", "rise"),
    "evaluation data",
    of_labels=True,
    either=True,
)
"""A function of the user's, by a name of the user's."""

METRICS: Mapping[str, Metric] = {
    "top1": Metric("fraction", True, _LOST, "evaluation data with labels and a model that classifies"),
    "top5": Metric("fraction", True, _LOST, "evaluation data with labels and a model of more than 5 classes"),
    "f1": _of_labels("class numbers"),
    "f1_binary": _of_labels("class numbers, 0 or 1"),
    "map": _of_labels("boxes"),
    "map50": _of_labels("boxes"),
    "miou": _of_labels("classes of pixels"),
    "wer": _of_labels("texts", errors=True),
    "cer": _of_labels("texts", errors=True),
    "agreement": Metric(
        "fraction",
        True,
        ("value",),
        "evaluation data (--data or --eval) and a model that classifies",
        per_output=True,
    ),
    "cosine": Metric("number", True, ("value",), _COMPARED, per_output=True),
    "sqnr": Metric("decibel", True, ("value",), _COMPARED, per_output=True),
    "sparsity": Metric("fraction", True, ("value",), "a model with weights"),
    "size": Metric("bytes", False, _RATIO, "the file"),
    "packed": Metric("bytes", False, _RATIO, "the file"),
    "weights": Metric("bytes", False, _RATIO, "a model with weights"),
    "parameters": Metric("count", False, _RATIO, "a model with weights"),
    "macs": Metric("count", False, _RATIO, "a model whose products can be counted"),
    "latency": Metric("time", False, _RATIO, "a run that is timed (without --no-latency)"),
    "memory": Metric("bytes", False, _RATIO, "a model that runs in a process of its own"),
}

OTHER_NAMES = {
    "accuracy": "top1", "acc": "top1", "speed": "latency", "speedup": "latency ratio", "compression": "size ratio",
    "params": "parameters", "flops": "macs", "snr": "sqnr", "iou": "miou", "ap": "map", "map@50": "map50",
    "f1_macro": "f1", "ram": "memory",
}  # fmt: skip

OF_A_FILE = ("sparsity", "size", "packed", "weights", "parameters", "macs", "latency", "memory")
"""Metrics that need no data; all others are of what the model computes of it."""


def of_data(metric: str) -> bool:
    """Whether a metric, a user's own too, is of what the model computes of data."""
    return metric.split("[")[0] not in OF_A_FILE


def known_metric(name: str) -> Metric:
    """A name that is not Lathe's is a user's metric."""
    return METRICS.get(name, USER)
