"""The range coder, and the integer tables that probabilities come from.

All arithmetic is on integers, or on floats that are exact (k / 2^16, k / 2^24), so that every machine
decodes the same. constriction's range coder (words of 32 bits, a state of 64, probabilities of 24) does the
coding; docs/pack-format.md says it in full.
Source: Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979;
Mahoney, "Adaptive weighing of context models for lossless data compression", 2005 (logistic mixing).
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import constriction
import numpy as np

from onnx_lathe.errors import ModelError

UNIT = 1024
"""Of a logit: ln(p / (1 - p)) = 1 is 1024."""
LIMIT = 12 * UNIT
ONE = 1 << 16
"""Of a probability."""

LN = np.concatenate([[0], np.rint(UNIT * np.log(np.arange(1, ONE + 1)))]).astype(np.int64)
"""LN[i] = round(1024 ln i) for 1 <= i <= 65536; LN[0] is 0."""
SQUASH = np.clip(np.rint(ONE / (1 + np.exp(-np.arange(-LIMIT, LIMIT + 1) / UNIT))), 1, ONE - 1).astype(
    np.int64
)
"""SQUASH[x + LIMIT] = round(65536 / (1 + e^(-x / 1024))), within 1..65535."""

_STREAM = constriction.stream.queue
_EACH = constriction.stream.model.Bernoulli(perfect=False)
_EVEN = constriction.stream.model.Bernoulli(0.5, perfect=False)
_Result = TypeVar("_Result")


class Coder(Protocol):
    """Encoder and decoder alike, so that a model is written once: `values` to encode, None to decode. What
    was coded comes back.
    """

    def bits(self, probability: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        """Decisions, int32 [n]; `probability` of a 1 is int [n], 1..65535 of 65536."""

    def raw(self, width: int, count: int, values: np.ndarray | None) -> np.ndarray:
        """`count` unsigned integers of `width` bits (0..64), uint64, each as likely as any other."""


def given(values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise TypeError("an encoder needs values")
    return values


class Encoder:
    def __init__(self) -> None:
        self._queue = _STREAM.RangeEncoder()

    def bits(self, probability: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        bits = given(values).astype(np.int32)
        self._queue.encode(bits, _EACH, probability / ONE)
        return bits

    def raw(self, width: int, count: int, values: np.ndarray | None) -> np.ndarray:
        numbers = given(values).astype(np.uint64)
        shifts = np.arange(width, dtype=np.uint64)
        self._queue.encode((numbers[:, None] >> shifts & np.uint64(1)).astype(np.int32).reshape(-1), _EVEN)
        return numbers

    def finish(self) -> bytes:
        """What was coded, little-endian words; zeros at the end are left out."""
        return to_bytes(self._queue)


class Decoder:
    def __init__(self, content: bytes) -> None:
        self._queue = _STREAM.RangeDecoder(to_words(content))

    def bits(self, probability: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        return guarded(lambda: self._queue.decode(_EACH, probability / ONE))

    def raw(self, width: int, count: int, values: np.ndarray | None) -> np.ndarray:
        bits = (
            guarded(lambda: self._queue.decode(_EVEN, width * count)).astype(np.uint64).reshape(count, width)
        )
        return (bits << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)


def to_bytes(encoder: Any) -> bytes:
    return bytes(encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


def to_words(content: bytes) -> np.ndarray:
    return np.frombuffer(content + bytes(-len(content) % 4), "<u4").astype(np.uint32)


def guarded(decode: Callable[[], _Result]) -> _Result:
    """constriction says with an AssertionError that no encoder wrote these words."""
    try:
        return decode()
    except AssertionError as error:
        raise ModelError("is damaged: its weights do not decode; copy it again") from error


class Counters:
    """How often a 0 and a 1 came, per context; in sixteenths, halved when a sum passes 60,000."""

    STEP = 16

    def __init__(self, contexts: int, zeros: int, ones: int) -> None:
        self._seen = np.empty((2, contexts), np.int64)
        self._seen[0], self._seen[1] = max(1, zeros), max(1, ones)
        self._start = max(1, zeros) + max(1, ones)

    def logit(self, context: np.ndarray, unseen: np.ndarray | None = None) -> np.ndarray:
        """Of a 1; `unseen` where a context came never yet."""
        zeros, ones = self._seen[0, context], self._seen[1, context]
        said = LN[ones] - LN[zeros]
        return said if unseen is None else np.where(zeros + ones == self._start, unseen, said)

    def update(self, context: np.ndarray, bits: np.ndarray) -> None:
        """Work in the size of the batch, not of the table."""
        zeros, ones = self._seen[0], self._seen[1]
        added = self.STEP * bits.astype(np.int64)
        np.add.at(ones, context, added)
        np.add.at(zeros, context, self.STEP - added)
        while (full := zeros[context] + ones[context] > 60_000).any():
            context = np.unique(context[full])
            self._seen[:, context] = np.maximum(self._seen[:, context] >> 1, 1)


class Mixer:
    """Adds up what several contexts say, in the logistic domain, with weights that follow the coding cost
    downhill.
    """

    LIMIT = 4 << 16

    def __init__(self, weights: list[int], rate: int) -> None:
        """`weights`: what they start at, of 65536."""
        self._weights, self._rate = np.array(weights, np.int64), rate

    def probability(self, base: np.ndarray | int, inputs: np.ndarray) -> np.ndarray:
        """Of a 1, of 65536, int64 [n]; `inputs` [inputs, n] and `base` are logits."""
        self._inputs = inputs
        logit = base + ((self._weights @ inputs) >> 16)
        # np.clip takes twice as long
        self._said = SQUASH[np.minimum(np.maximum(logit, -LIMIT), LIMIT) + LIMIT]
        return self._said

    def learn(self, bits: np.ndarray) -> None:
        """Moves the weights, after the decisions that `probability` was last asked about."""
        slope = self._inputs @ ((bits.astype(np.int64) << 16) - self._said)
        self._weights = np.minimum(
            np.maximum(self._weights + ((slope * self._rate) >> 24), -self.LIMIT), self.LIMIT
        )
