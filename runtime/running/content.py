"""What tells two models apart that are in memory, of any size."""

import hashlib

import onnx
from google.protobuf.message import Message

from onnx_lathe.runtime.data.source import fingerprint


def model_fingerprint(model: onnx.ModelProto) -> str:
    """Equal for models that compute the same by the same nodes and weights. Part by part: a large model
    cannot be serialized whole.
    """
    graph = model.graph
    parts = (
        graph.initializer,
        graph.sparse_initializer,
        graph.node,
        graph.input,
        graph.output,
        model.functions,
        model.opset_import,
    )
    return fingerprint(*(fingerprint(*(_hashed(item) for item in part)).encode() for part in parts))


def _hashed(message: Message) -> bytes:
    return hashlib.blake2b(message.SerializeToString(deterministic=True), digest_size=16).digest()
