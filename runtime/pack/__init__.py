"""A lossless container for ONNX files that finds out by itself how each tensor is best coded.

    packed = pack(onnx_bytes)        unpack(packed) == onnx_bytes

container.py lays out the file; wire.py takes a file apart; plans.py chooses a coder for each tensor;
small.py, adaptive.py and masks.py code small tensors, blocks.py and static.py big ones; arithmetic.py is the
range coder. The format: docs/pack-format.md.
"""

from onnx_lathe.runtime.pack.container import (
    BEST,
    EFFORTS,
    FAST,
    LIMIT_BYTES,
    MAGIC,
    VERSION,
    Unpacker,
    is_packed,
    pack,
    unpack,
)

__all__ = [
    "BEST",
    "EFFORTS",
    "FAST",
    "LIMIT_BYTES",
    "MAGIC",
    "VERSION",
    "Unpacker",
    "is_packed",
    "pack",
    "unpack",
]
