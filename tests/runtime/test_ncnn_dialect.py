"""How weights and parameters are written: tags, alignment, and values as ncnn reads them."""

import io

import numpy as np
import pytest

from onnx_lathe.runtime.targets.ncnn.dialect import (
    Layer,
    Stored,
    Weight,
    param_text,
    plain_name,
    write_weights,
)


def written(stored: Stored, tagged: bool = True, half: bool = False) -> bytes:
    file = io.BytesIO()
    layers = [Layer("Convolution", "c", ["a"], ["b"], {}, [Weight(stored, tagged)])]
    write_weights(layers, file, half)
    return file.getvalue()


def test_floats_have_a_tag_where_the_layer_reads_one() -> None:
    values = np.array([0.1, -2.7], np.float32)
    assert written(Stored(values)) == bytes(4) + values.tobytes()
    assert written(Stored(values), tagged=False) == values.tobytes()


def test_half_is_padded_to_words() -> None:
    values = np.array([0.1, -2.7, 3.3], np.float32)
    found = written(Stored(values), half=True)
    assert found == (0x01306B47).to_bytes(4, "little") + values.astype("<f2").tobytes() + bytes(2)


def test_what_half_holds_exactly_is_stored_so() -> None:
    assert written(Stored(np.array([0.5, -2.0], np.float32)))[:4] == (0x01306B47).to_bytes(4, "little")
    assert written(Stored(np.array([0.5, 1e6], np.float32)))[:4] == bytes(4)


def test_integers_and_tables() -> None:
    codes = np.array([-127, 0, 5], np.int8)
    assert written(Stored(codes)) == (0x000D4B38).to_bytes(4, "little") + codes.tobytes() + bytes(1)
    table = np.array([0.1, 0.2], np.float32)
    indices = np.tile(np.array([1, 0, 1, 1, 0], np.uint8), 69)
    found = written(Stored(indices, table))
    assert sum(found[:4]) > 0
    assert np.array_equal(np.frombuffer(found[4:12], "<f4"), table)
    assert found[4 + 1024 :] == indices.tobytes() + bytes(3)


@pytest.mark.parametrize("half, count, value_bytes", [(False, 341, 4), (True, 1024, 2)])
def test_a_table_that_takes_more_than_its_values_is_not_written(
    half: bool, count: int, value_bytes: int
) -> None:
    table = np.array([0.1, 0.2], np.float32)
    indices = np.arange(count + 1, dtype=np.uint8) % 2
    one, more = (written(Stored(indices[:size], table), half=half) for size in (count, count + 1))
    kind = np.dtype(f"<f{value_bytes}")
    assert one[4:] == table[indices[:count]].astype(kind).tobytes()
    assert sum(more[:4]) == 1
    assert len(one) <= len(more) <= len(one) + 4  # padding


@pytest.mark.parametrize(
    "value, text",
    [
        (3, "0=3"),
        (0.1, "0=1.00000001e-01"),
        (-np.inf, "0=-3.40282347e+38"),
        ([1, 2], "-23300=2,1,2"),
        ("0w,-1", '0="0w,-1"'),
    ],
)
def test_values_of_a_line(value: object, text: str) -> None:
    line = param_text([Layer("Clip", "c", ["a"], ["b"], {0: value})]).splitlines()[2]  # type: ignore[dict-item]
    assert line.endswith(f" a b {text}")
    assert all(len(one) <= 15 for one in text.partition("=")[2].split(",") if one[0] != '"')


def test_names_have_no_white_space() -> None:
    assert plain_name("a b\tc") == "a_b_c"
    assert plain_name("") == "unnamed"
    assert len(plain_name("x" * 300)) == 225  # of 255 bytes: a number may come behind it
    assert len(plain_name("é" * 300).encode()) <= 225
