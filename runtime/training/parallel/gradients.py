"""What workers send each other of their gradients after a backward pass: communication hooks of
DistributedDataParallel.

| name | sent | source |
|---|---|---|
| full | every gradient, as it is | |
| half | every gradient in float16 | PyTorch's fp16_compress_hook |
| powersgd | two factors of each matrix of gradients, whose error is carried over | Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019 |
| threshold | sign and place of gradients beyond a threshold, the rest is carried over | Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015, section 4 |

Bytes are counted as a ring moves them: of n bytes to be summed, each of W workers sends 2 (W - 1) / W * n;
n bytes that all the others are to have are sent W - 1 times.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from onnx_lathe.errors import UsageError

Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]

POWERSGD_FROM = 2
"""Steps before PowerSGD begins: after the first one, DistributedDataParallel divides the gradients anew."""

_LARGEST_GAP = 0x7FFF
"""Elements that one 16-bit code can pass over; the code that says so much names no element."""


@dataclass
class Traffic:
    """What this worker sends of its gradients; `full_bytes` is what it would be without compression."""

    workers: int
    sent_bytes: float = 0.0
    full_bytes: float = 0.0
    steps: int = 0

    def begin(self, bucket: GradBucket) -> None:
        self.full_bytes += self.ring(_bytes(bucket.buffer()), self.workers)
        self.steps += bucket.is_last()

    def summed(self, size_bytes: float) -> None:
        self.sent_bytes += self.ring(size_bytes, self.workers)

    def reduced(self, size_bytes: float) -> None:
        """All gradients of a step, summed as they are."""
        self.full_bytes += self.ring(size_bytes, self.workers)
        self.summed(size_bytes)
        self.steps += 1

    def gathered(self, size_bytes: float) -> None:
        self.sent_bytes += (self.workers - 1) * size_bytes

    @staticmethod
    def ring(size_bytes: float, workers: int) -> float:
        """What each of so many workers sends to sum so many bytes."""
        return 2 * (workers - 1) / workers * size_bytes

    def metrics(self) -> dict[str, float]:
        """bytes_per_step: that this worker sends; gradient_ratio: uncompressed / sent. Empty before the
        first step.
        """
        if not self.steps or not self.sent_bytes:
            return {}
        return {
            "bytes_per_step": self.sent_bytes / self.steps,
            "gradient_ratio": self.full_bytes / self.sent_bytes,
        }


def communication_hook(name: str, rank: int, threshold: float, precision: str, traffic: Traffic) -> Hook:
    """The hook for the option `gradients`, which counts what it sends in `traffic`; `rank` is PowerSGD's.

    Raises UsageError for a loss that is scaled, as float16 needs: what is carried over from step to step
    would be of another scale.
    """
    if precision == "float16" and name in ("powersgd", "threshold"):
        raise UsageError(
            f"gradients='{name}' carries gradients over, whose scale changes with precision='float16'; take bfloat16"
        )
    if name == "threshold":
        return Threshold(threshold, traffic).average
    if name == "powersgd":
        return _PowerSGD(rank, traffic).average
    compressed = name == "half"

    def plain(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        traffic.begin(bucket)
        traffic.summed(2 * bucket.buffer().numel() if compressed else _bytes(bucket.buffer()))
        return (fp16_compress_hook if compressed else allreduce_hook)(_world(), bucket)

    return plain


class _PowerSGD:
    def __init__(self, rank: int, traffic: Traffic) -> None:
        self.traffic = traffic
        self.state = PowerSGDState(
            _world(), matrix_approximation_rank=rank, start_powerSGD_iter=POWERSGD_FROM
        )

    def average(self, state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        before, size = self.state.total_numel_after_compression, buffer.element_size()
        whole = self.state.iter < POWERSGD_FROM
        self.traffic.begin(bucket)
        # It goes on sending from callbacks. What the next bucket sends must not get in between, or workers
        # take one for the other.
        mean = powerSGD_hook(self.state, bucket).wait()
        self.traffic.summed(
            _bytes(buffer) if whole else size * (self.state.total_numel_after_compression - before)
        )
        return _done(mean)


@dataclass
class Threshold:
    """Elements of residual + gradient beyond +-`threshold` are sent as +-`threshold`; what that leaves is
    the residual of the next step.

    A sum of all that was sent and the residual is the sum of all gradients. A gradient that is NaN or
    infinite at one worker makes NaN of all, at all of them, as a sum would.
    """

    threshold: float
    traffic: Traffic
    residuals: dict[int, Tensor] = field(default_factory=dict)
    """By identity of the parameter, flat as in the bucket: buckets are divided anew after the first step."""

    def average(self, state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self.traffic.begin(bucket)
        mean, parameters = bucket.buffer(), bucket.parameters()
        for parameter in parameters:
            if id(parameter) not in self.residuals:
                self.residuals[id(parameter)] = torch.zeros(
                    parameter.numel(), dtype=mean.dtype, device=mean.device
                )
        total = mean + torch.cat([self.residuals[id(parameter)] for parameter in parameters])
        codes = taken_off(total, self.threshold)
        pieces = total.split([parameter.numel() for parameter in parameters])
        self.residuals.update(
            (id(parameter), piece) for parameter, piece in zip(parameters, pieces, strict=True)
        )
        mean.zero_()
        for given in self._exchanged(codes, mean.device):
            if given is None:
                mean.fill_(torch.nan)
                break
            places, signs = decode(given)
            mean[places] += signs.to(mean.dtype) * (self.threshold / self.traffic.workers)
        return _done(mean)

    def _exchanged(self, codes: Tensor | None, device: torch.device) -> list[Tensor | None]:
        """The codes of all workers, in their order; None of one that has nothing finite."""
        count = torch.tensor([-1 if codes is None else len(codes)], device=device)
        counts = [torch.empty_like(count) for _ in range(self.traffic.workers)]
        dist.all_gather(counts, count)
        lengths = [int(one) for one in counts]
        self.traffic.gathered(_bytes(count))
        if min(lengths) < 0 or codes is None:
            return [None]
        padded = codes.new_zeros(max(lengths))
        padded[: len(codes)] = codes
        gathered = [torch.empty_like(padded).view(torch.uint8) for _ in lengths]
        if len(padded):
            dist.all_gather(gathered, padded.view(torch.uint8))
            self.traffic.gathered(_bytes(padded))
        return [one.view(torch.int16)[:length] for one, length in zip(gathered, lengths, strict=True)]


def taken_off(total: Tensor, threshold: float) -> Tensor | None:
    """The codes of all elements beyond +-`threshold`, which is taken off them; None, and nothing is, if some element is
    infinite or no number.
    """
    if not bool(torch.isfinite(total).all()):
        return None
    index = (total.abs() >= threshold).nonzero().flatten()
    negative = total[index] < 0
    total[index] -= torch.where(negative, -threshold, threshold).to(total.dtype)
    return encode(index, negative)


def encode(index: Tensor, negative: Tensor) -> Tensor:
    """int16 codes of ascending element numbers (int64) with a sign each: 15 bits say how many elements are
    passed over, one is the sign.

    Strom takes 31 bits for the number; where 1 of 100 elements is sent, this is half of it.
    """
    gaps = torch.diff(index, prepend=index.new_full((1,), -1)) - 1
    passes = gaps // _LARGEST_GAP
    places = torch.cumsum(passes + 1, 0) - 1
    codes = index.new_full((int(places[-1]) + 1 if len(places) else 0,), _LARGEST_GAP << 1)
    codes[places] = (gaps % _LARGEST_GAP) << 1 | negative.long()
    return (codes - (codes >> 15 << 16)).to(torch.int16)


def decode(codes: Tensor) -> tuple[Tensor, Tensor]:
    """(element numbers, int64; signs, +1 or -1) of what `encode` made."""
    bits = codes.long() & 0xFFFF
    gaps = bits >> 1
    named = gaps < _LARGEST_GAP
    places = torch.cumsum(gaps + named, 0) - 1
    return places[named], 1 - 2 * (bits[named] & 1)


def _world() -> Any:
    return dist.group.WORLD


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _done(tensor: Tensor) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[tensor.device] if tensor.device.type == "cuda" else None
    )
    future.set_result(tensor)
    return future
