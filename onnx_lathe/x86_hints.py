"""Which tile ncnn's x86 kernels take for a convolution whose size they are told: its tables, as they stand.

By the number of input channels, then of output channels, each at least the key: the heights or widths, whichever is
less and with the padding, at which the tile is taken.
Source: ncnn, src/layer/x86/convolution_x86.cpp, test_prefer_winograd23 and test_prefer_winograd63 (July 2026).
"""

from collections.abc import Mapping

Ranges = tuple[tuple[int, int], ...]
Table = Mapping[int, Mapping[int, Ranges]]

ANY: Ranges = ((1, 1 << 30),)
PADDING = 2

F63: Table = {
    64: {},
    32: {
        64: (),
        32: ((11, 14), (19, 20), (23, 44), (47, 56), (63, 130)),
        16: ((13, 14), (19, 20), (23, 38), (43, 44), (47, 140)),
        8: ((11, 14), (19, 20), (31, 38), (43, 44), (55, 162)),
    },
    16: {
        64: (),
        32: ((11, 14), (19, 20), (23, 44), (47, 92), (95, 188)),
        16: ((11, 14), (27, 38), (43, 44), (47, 74), (81, 110), (117, 170), (177, 182)),
        8: ((19, 20), (33, 38), (43, 44), (47, 128), (155, 210)),
    },
    8: {
        64: (),
        32: ((7, 14), (17, 20), (23, 26), (31, 38), (43, 162)),
        16: ((31, 32), (39, 44), (47, 212)),
        8: (),
    },
}

F23: Table = {
    512: {
        128: ((3, 14),),
        64: ((3, 8), (11, 12)),
        16: ((3, 8),),
        8: ((3, 6),),
    },
    256: {
        256: ((3, 14),),
        128: ((3, 12),),
        64: ((3, 4),),
        16: ((3, 8),),
        8: ((3, 6),),
    },
    128: {
        512: ((3, 14),),
        256: ((3, 8), (11, 12)),
        128: ((3, 10),),
        64: ((3, 8),),
        32: ((3, 10),),
        8: ((3, 6),),
    },
    64: {
        512: ((3, 8), (11, 12), (15, 20)),
        256: ((7, 8),),
        128: ((3, 8), (19, 22)),
        8: ((3, 12),),
    },
    32: {
        256: ((3, 6), (11, 12)),
        128: ((3, 4), (7, 16)),
        64: ((3, 8),),
        16: ((7, 8),),
        8: ((3, 10),),
    },
    16: {
        512: ((11, 12),),
        256: ((3, 12),),
        128: ((3, 6), (9, 18)),
        64: ((3, 4), (7, 8), (11, 12), (15, 18)),
        32: ((3, 4), (9, 10)),
        16: ((3, 10),),
        8: ((3, 8), (11, 12)),
    },
    8: {
        128: (),
        64: ((3, 4), (7, 14), (47, 48)),
        32: ((3, 6), (15, 16)),
        16: ((3, 6), (9, 14), (47, 212)),
        8: ANY,
    },
}


def hinted(inputs: int, outputs: int, height: int, width: int) -> int:
    """m of F(m, 3) that is taken for a result of this size."""
    size = min(height, width) + PADDING
    if _within(F23, inputs, outputs, size):
        return 2
    return 6 if _within(F63, inputs, outputs, size) else 4


def _within(table: Table, inputs: int, outputs: int, size: int) -> bool:
    row = table.get(max((key for key in table if inputs >= key), default=0), {})
    ranges = row.get(max((key for key in row if outputs >= key), default=0), ())
    return any(low <= size <= high for low, high in ranges)
