"""The head of a packed file, skeleton and plans, made small: zstd with a dictionary of typical ONNX files,
or LZMA for a long one.
"""

import lzma
from functools import cache
from importlib.resources import files

import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders.general import lzma_filters, reach, unlzma, unzstd

STORED, ZSTD, LZMA = 0, 1, 2
DICTIONARY = "dictionary-1.bin"
"""Part of the format: version 1 of it always has this one."""
LZMA_BYTES = 1 << 24
QUICK_LEVEL, QUICK_PRESET = 12, 6
SPARE_BYTES, MOST_RATIO = 1 << 20, 256
"""Of a head: more than SPARE_BYTES and MOST_RATIO bytes for each packed one are refused, since a skeleton takes time and
memory by its fields. One of ten thousand equal layers is packed 49 times.
"""


def most_bytes(packed: int) -> int:
    """What a head that is packed in so many bytes may unpack to."""
    return SPARE_BYTES + MOST_RATIO * packed


@cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    content = files("onnx_lathe.runtime.pack").joinpath(DICTIONARY).read_bytes()
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def compress(content: bytes, thorough: bool = True) -> tuple[int, bytes]:
    """Which coder did best, and what it made; each tries its hardest if `thorough`."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22 if thorough else QUICK_LEVEL, source_size=len(content), dict_size=len(_dictionary()), format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False, write_checksum=False, write_dict_id=False,
    )  # fmt: skip
    made = {
        STORED: content,
        ZSTD: zstandard.ZstdCompressor(dict_data=_dictionary(), compression_params=parameters).compress(
            content
        ),
        LZMA: lzma.compress(
            content,
            lzma.FORMAT_RAW,
            filters=lzma_filters(
                reach(len(content), LZMA_BYTES), 9 | lzma.PRESET_EXTREME if thorough else QUICK_PRESET
            ),
        ),
    }
    read = [kind for kind in made if kind == STORED or len(content) <= most_bytes(len(made[kind]))]
    coder = min(read, key=lambda kind: (len(made[kind]), kind))
    return coder, made[coder]


def decompress(coder: int, content: bytes, size: int) -> bytes:
    """`size` bytes. Raises ModelError if it does not decode to just so many; memory stays within that size."""
    if coder == ZSTD:
        return unzstd(content, size, _dictionary(), zstandard.FORMAT_ZSTD1_MAGICLESS)
    if coder == LZMA:
        return unlzma(content, size, LZMA_BYTES)
    if coder != STORED or len(content) != size:
        raise ModelError("is damaged: its head does not decode; copy it again")
    return content
