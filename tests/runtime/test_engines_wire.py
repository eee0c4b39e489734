"""Messages with arrays between a process and its child."""

import io

import numpy as np

from onnx_lathe.runtime import wire

ARRAYS = {
    "line\nbreak": np.arange(6, dtype=np.float16).reshape(2, 3),
    "number": np.array(7, np.int64),
    "nothing": np.zeros((0, 4), np.float32),
    "yes": np.array([True, False]),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def sent() -> bytes:
    stream = io.BytesIO()
    wire.send(stream, {"do": "run"}, ARRAYS)
    return stream.getvalue()


def test_what_is_sent_is_received() -> None:
    stream = io.BytesIO(sent() + sent())
    for _ in range(2):
        received = wire.receive(stream)
        assert received is not None
        message, arrays = received
        assert message == {"do": "run"}
        assert list(arrays) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(arrays[name], array)
    assert wire.receive(stream) is None


def test_half_a_message_is_none() -> None:
    whole = sent()
    for size in range(len(whole)):
        assert wire.receive(io.BytesIO(whole[:size])) is None
