"""Mixed precision: weights and optimizer in float32, forward and backward pass in half precision where that
is safe.

float16 has few exponents: gradients would vanish in it, so the loss is multiplied by a scale. The scale
doubles after a number of good steps; a step whose gradients overflow is left out, and halves it. Source:
Micikevicius et al., "Mixed Precision Training", ICLR 2018, sections 3.1 and 3.2.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnx_lathe.errors import UsageError

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """`name` is float32, bfloat16 or float16; a training loop then is

        with precision.autocast():
            loss = ...
        optimizer.zero_grad()
        precision.backward(loss)
        precision.step(optimizer, parameters, clip)

    `first_scale` is the scale of float16 to begin with, `doubling` the number of good steps after which it
    doubles. Raises UsageError for another name, or a precision that PyTorch does not compute in on the
    device.
    """

    def __init__(
        self, name: str, device: torch.device, first_scale: float = 2.0**16, doubling: int = 2000
    ) -> None:
        if name not in _TYPES:
            raise UsageError(f"there is no precision '{name}'; give {', '.join(_TYPES)}")
        self.name, self.device = name, device
        self.metrics: dict[str, float] = {}
        """For float16: loss_scale, and skipped_steps."""
        self._scaler = torch.amp.GradScaler(
            device.type, first_scale, growth_interval=doubling, enabled=name == "float16"
        )
        if name != "float32":
            self._try()
        if name == "float16":
            self.metrics |= {"loss_scale": first_scale, "skipped_steps": 0.0}

    def autocast(self) -> AbstractContextManager[Any]:
        """For forward pass and loss of the module, and of its teacher."""
        return (
            nullcontext() if self.name == "float32" else torch.autocast(self.device.type, _TYPES[self.name])
        )

    def backward(self, loss: Tensor) -> None:
        """Adds gradients to the parameters, those of the scaled loss for float16."""
        self.scaled(loss).backward()

    def scaled(self, loss: Tensor) -> Tensor:
        """What `backward` goes through."""
        return self._scaler.scale(loss)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        clip: float,
        norm: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> bool:
        """One step of the optimizer, the gradients brought back to their own scale and then to a length of
        at most `clip` (0: any). `norm`: of the norm of these gradients, that of all workers'.

        False if some gradient was infinite or no number in float16: weights and optimizer are as they were.
        """
        if self.name == "float16":
            self._scaler.unscale_(optimizer)
        if clip > 0:
            graded = [parameter for parameter in parameters if parameter.grad is not None]
            gradients = [parameter.grad for parameter in graded if parameter.grad is not None]
            nn.utils.clip_grads_with_norm_(graded, clip, norm(nn.utils.get_total_norm(gradients)))
        self._scaler.step(optimizer)
        if self.name != "float16":
            return True
        before = self._scaler.get_scale()
        self._scaler.update()
        scale = self._scaler.get_scale()
        self.metrics["loss_scale"] = scale
        self.metrics["skipped_steps"] += scale < before
        return scale >= before

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on as if there had been no interruption; empty but for float16."""
        if self.name != "float16":
            return {}
        now = self._scaler.state_dict()
        numbers = {
            "scale": now["scale"],
            "good_steps": now["_growth_tracker"],
            "skipped_steps": self.metrics["skipped_steps"],
        }
        return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.name != "float16":
            return
        scale, good, skipped = (state[name].item() for name in ("scale", "good_steps", "skipped_steps"))
        self._scaler.load_state_dict(
            self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(good)}
        )
        self.metrics |= {"loss_scale": scale, "skipped_steps": skipped}

    def _try(self) -> None:
        """A small convolution and matrix product, forward and backward: PyTorch knows only then what its
        libraries can do here.
        """
        image = torch.ones(1, 2, 4, 4, device=self.device, requires_grad=True)
        kernel = torch.ones(2, 2, 3, 3, device=self.device, requires_grad=True)
        try:
            with torch.enable_grad(), self.autocast():
                out = F.conv2d(image, kernel, padding=1).flatten(2)
                product = out @ out.transpose(1, 2)
            product.float().sum().backward()
        except (RuntimeError, NotImplementedError) as error:
            raise UsageError(
                f"PyTorch cannot compute in {self.name} on {self.device}; give another precision="
            ) from error
        if product.dtype != _TYPES[self.name]:  # PyTorch only warns of a type that it does not cast to
            raise UsageError(
                f"PyTorch does not cast to {self.name} on {self.device}; give another precision="
            )
