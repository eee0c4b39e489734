"""Packed files that lie of what is in them: tests/runtime/test_pack_damage.py has single changes of honest ones."""

import lzma
import zlib
from pathlib import Path

import pytest
import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack import head, unpack
from onnx_lathe.runtime.pack.coders import varint
from onnx_lathe.runtime.pack.coders.general import lzma_filters, reach
from tests.support.bounded import bounded

EMPTIES = 20_000_000


def packed(inside: bytes, whole: int, said: int | None = None, coder: int = head.ZSTD) -> bytes:
    """A packed file of that head, which is to give `whole` bytes, with a right checksum."""
    if coder == head.LZMA:
        filters = lzma_filters(reach(len(inside), head.LZMA_BYTES), 6)
        content = lzma.compress(inside, lzma.FORMAT_RAW, filters=filters)
    else:
        content = head.compress(inside[:0])[1] if not inside else _zstd(inside)
    sizes = varint.write(whole) + bytes([coder]) + varint.write(len(inside) if said is None else said)
    made = b"\x89LTH\x01" + sizes + varint.write(len(content)) + content + varint.write(0)
    return made + zlib.crc32(made).to_bytes(4, "little")


def _zstd(inside: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(dict_data=head._dictionary(), compression_params=parameters).compress(
        inside
    )


@pytest.mark.parametrize("coder", [head.ZSTD, head.LZMA], ids=["zstd", "lzma"])
@pytest.mark.parametrize("piece", [b"\x0a\x00", b"\x3a\x00", b"\x08\x00"], ids=["names", "graphs", "numbers"])
def test_a_head_of_many_empty_fields(
    piece: bytes, coder: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few kilobytes that unpack to 20 MB of fields with nothing in them."""
    skeleton = piece * (EMPTIES // len(piece))
    path = tmp_path / "model.lathe"
    path.write_bytes(packed(varint.write(len(skeleton)) + skeleton, len(skeleton), coder=coder))
    assert path.stat().st_size < 20_000
    for arguments in (["inspect", path], ["unpack", path, "--out", tmp_path / "back.onnx"]):
        ended = bounded(capfd, arguments, path.stat().st_size)
        assert ended.code == 2
        assert "its head" in ended.line
    assert not (tmp_path / "back.onnx").exists()


@pytest.mark.parametrize("said", [0, 1, 1 << 20, 1 << 40, 1 << 62])
def test_a_head_that_lies_of_its_length(said: int) -> None:
    skeleton = b"\x08\x01" * 40
    with pytest.raises(ModelError, match=r"damaged|larger|GB"):
        unpack(packed(varint.write(len(skeleton)) + skeleton, len(skeleton), said))


@pytest.mark.parametrize("whole", [0, 1, 79, 81, 1 << 30, 1 << 62])
def test_a_file_that_lies_of_what_it_gives(whole: int) -> None:
    skeleton = b"\x08\x01" * 40
    with pytest.raises(ModelError, match=r"damaged|GB"):
        unpack(packed(varint.write(len(skeleton)) + skeleton, whole))
