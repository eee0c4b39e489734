"""Damaged and hostile packed files: one line of refusal, never a crash, a hang, or more memory than
allowed.
"""

import random
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack import VERSION, container, pack, unpack
from onnx_lathe.runtime.pack.coders import varint
from tests.support import packing


@pytest.fixture(scope="module")
def content() -> bytes:
    return packing.model(packing.arrays())


@pytest.fixture(scope="module", params=["small", "blocks"])
def packed(request: pytest.FixtureRequest, content: bytes) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "blocks":
            patch.setattr(container, "ADAPTIVE_BUDGET", 0)
        return pack(content)


def sealed(body: bytes) -> bytes:
    """With a right checksum, as a hostile file has."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_every_truncation_is_refused(packed: bytes) -> None:
    for size in [*range(4, 60), *range(60, len(packed), 53), len(packed) - 1]:
        with pytest.raises(ModelError, match=r"truncated|damaged"):
            unpack(packed[:size])


def test_every_flipped_bit_is_found_by_the_checksum(packed: bytes) -> None:
    for at in range(5, len(packed), 7):
        wrong = bytearray(packed)
        wrong[at] ^= 1 << at % 8
        with pytest.raises(ModelError, match="checksum"):
            unpack(bytes(wrong))


@pytest.mark.slow
def test_hostile_changes_are_refused_or_harmless(packed: bytes, content: bytes) -> None:
    """The checksum is made right again, so the damage reaches every decoder."""
    generator, refused = random.Random(0), 0
    for _ in range(150):
        body = bytearray(packed[:-4])
        for _ in range(generator.choice([1, 1, 2, 8])):
            at = generator.randrange(5, len(body)) if generator.random() < 0.5 else generator.randrange(5, 60)
            change = generator.random()
            if change < 0.6:
                body[at] = generator.randrange(256)
            elif change < 0.8:
                del body[at : at + generator.randrange(1, 9)]
            else:
                body[at:at] = bytes(generator.randrange(256) for _ in range(generator.randrange(1, 9)))
        refused += is_refused(sealed(bytes(body)), 10 * len(content))
    assert refused > 120


def is_refused(hostile: bytes, limit: int) -> bool:
    try:
        return len(unpack(hostile, limit)) > limit
    except ModelError as error:
        return "\n" not in str(error)


def test_another_version_is_named(packed: bytes) -> None:
    with pytest.raises(ModelError, match=f"version 9 .* knows version {VERSION}; update Lathe"):
        unpack(packed[:4] + b"\x09" + packed[5:])


def test_a_declared_size_over_the_limit_is_refused_before_anything_is_allocated() -> None:
    honest = pack(packing.model({"w": np.zeros((1000, 1000), np.float32)}))
    assert len(honest) < 200
    with pytest.raises(
        ModelError, match=r"unpacks to 0.004 GB, more than the 0.001 GB allowed here; .* --limit GB"
    ):
        unpack(honest, 10**6)
    declared = varint.Reader(honest, 5)
    declared.varint()
    hostile = sealed(honest[:5] + varint.write(1 << 50) + honest[declared.at : -4])
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"1\.13e\+06 GB"):
        unpack(hostile)
    with pytest.raises(
        ModelError, match="do not have the size"
    ):  # within the limit, but not what the tensors add up to
        unpack(sealed(honest[:5] + varint.write(3_000_000_000) + honest[declared.at : -4]))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_bomb_in_the_head_stays_within_the_limit() -> None:
    """A head of zeros that would decode to far more than it says."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000))[4:]
    body = (
        container.MAGIC
        + bytes([VERSION])
        + varint.write(1000)
        + b"\x01"
        + varint.write(4000)
        + varint.write(len(bomb))
        + bomb
    )
    tracemalloc.start()
    with pytest.raises(ModelError, match="does not decode"):
        unpack(sealed(body + b"\0"))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_an_empty_file_comes_back_and_bytes_behind_the_parts_are_refused(packed: bytes) -> None:
    assert unpack(pack(b"")) == b""
    with pytest.raises(ModelError, match="longer than its parts"):
        unpack(sealed(packed[:-4] + b"more"))
