"""Zstandard and LZMA, decoded within bounds: never more output than asked for, whatever a hostile header
says.
"""

import io
import lzma

import zstandard

from onnx_lathe.errors import ModelError


def lzma_filters(dictionary_bytes: int, preset: int = 6, element_bytes: int = 1) -> list[dict[str, int]]:
    """`element_bytes`, a power of 2: repeated numbers begin at a multiple of it, and the bytes of one differ in kind."""
    filters = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary_bytes}
    if element_bytes > 1:
        position = min(element_bytes.bit_length() - 1, 3)
        filters |= {"lp": position, "pb": position, "lc": min(2, 4 - position)}  # lc + lp is at most 4
    return [filters]


def lzma_quick(dictionary_bytes: int, element_bytes: int = 1) -> list[dict[str, int]]:
    """Filters that take half the time of preset 6 and give one or two per cent more."""
    shallow = {"mf": lzma.MF_HC4, "nice_len": 32, "depth": 8}
    return [lzma_filters(dictionary_bytes, 6, element_bytes)[0] | shallow]


def reach(size: int, most: int) -> int:
    """Bytes of dictionary, up to `most`, that so much data can use: the encoder sets up ten times as many."""
    return min(most, max(1 << 12, 1 << size.bit_length()))


def unzstd(
    content: bytes,
    size: int,
    dictionary: zstandard.ZstdCompressionDict | None = None,
    format: int = zstandard.FORMAT_ZSTD1,
) -> bytes:
    """`size` bytes. Raises ModelError if there are more or fewer, or the frame is damaged."""
    window = 1 << max(20, size.bit_length() + 1)
    try:
        opened = zstandard.ZstdDecompressor(
            dict_data=dictionary, format=format, max_window_size=min(window, 1 << 30)
        )
        with opened.stream_reader(io.BytesIO(content)) as stream:
            return _exactly(stream.read(size + 1), size)
    except zstandard.ZstdError as error:
        raise ModelError("is damaged: a Zstandard frame in it does not decode; copy it again") from error


def unlzma(content: bytes, size: int, dictionary_bytes: int) -> bytes:
    """`size` bytes. Raises ModelError if there are more or fewer, or the data is damaged."""
    try:
        return _exactly(
            lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(dictionary_bytes)).decompress(
                content, size + 1
            ),
            size,
        )
    except (lzma.LZMAError, EOFError) as error:
        raise ModelError("is damaged: LZMA data in it does not decode; copy it again") from error


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ModelError("is damaged: a part of it has the wrong length; copy it again")
    return content
