"""ONNX graph -> trainable `torch.nn.Module` -> values of the graph's initializers.

`unsupported(model)` lists what has no PyTorch counterpart, `GraphModule(model)` is the module. Needs
PyTorch: importing this package without it raises UsageError, so other code imports it only when a retrain
asks for it.
"""

from onnx_lathe.errors import UsageError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise UsageError("retrain needs PyTorch; pip install 'onnx-lathe[train]'") from error

from onnx_lathe.runtime.torch_bridge.module import GraphModule
from onnx_lathe.runtime.torch_bridge.plan import kept, unsupported
from onnx_lathe.runtime.torch_bridge.registry import Unsupported

__all__ = ["GraphModule", "Unsupported", "kept", "unsupported"]
