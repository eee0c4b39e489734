"""Data that is small as a file and large in memory, that would run code, or that lies about itself."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import images
from tests.support.bounded import Ended, bounded, grown_by
from tests.support.builders import build, random

BOMB_BYTES = 8_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(build("(float[N, 16] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=random(16, 4)), path)
    return path


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A model that takes pictures."""
    path = tmp_path / "pictures.onnx"
    text = "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv(x, w) }"
    onnx.save(build(text, w=random(4, 3, 1, 1)), path)
    return path


def quantized(capfd: pytest.CaptureFixture[str], model: Path, data: Path, *more: str) -> Ended:
    out = model.parent / "out"
    arguments = [
        model,
        "--passes",
        "int8",
        "--calibration",
        data,
        "--out",
        out,
        "--quiet",
        "--no-latency",
        *more,
    ]
    return bounded(capfd, arguments, data.stat().st_size)


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Of a .npy file."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": dtype, "fortran_order": False, "shape": shape})
    return written.getvalue()


class Runs:
    """Unpickled, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["object array", "pickle for an array", "pickle for the archive"])
def test_a_pickle_is_refused_and_not_loaded(
    way: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran, path = tmp_path / "ran", tmp_path / "data.npz"
    if way == "object array":
        np.savez(path, x=np.array([Runs(ran)], dtype=object), allow_pickle=True)
    elif way == "pickle for an array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", pickle.dumps(Runs(ran)))
    else:
        path.write_bytes(pickle.dumps(Runs(ran)))
    pickle.loads(pickle.dumps(Runs(ran)))
    assert ran.exists(), "the pickle would have run"
    ran.unlink()
    assert quantized(capfd, model, path).code == 2
    assert not ran.exists()


def test_a_zip_bomb_that_lies_of_its_size(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The archive's list says 64 bytes of data, the compressed stream has 300 MB."""
    path = tmp_path / "data.npz"
    body = header((1, 16)) + bytes(64)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = compressor.compress(body)
    for _ in range(30):
        stream += compressor.compress(bytes(10_000_000))
    stream += compressor.flush()
    sizes = struct.pack("<III", zlib.crc32(body), len(stream), len(body))
    common = struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 5, 0)
    local = b"PK\x03\x04" + common + b"x.npy" + stream
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"x.npy"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    ended = quantized(capfd, model, path)
    assert ended.code in (0, 2)  # what was asked for is there; no more of it is unpacked


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((BOMB_BYTES // 64, 16), "size does not match its shape"),
        ((1 << 62, 16), "size does not match its shape"),
        ((-1, 16), "x"),
        ((0, 16), "has no samples"),
    ],
)
def test_a_header_that_lies_of_its_shape(
    shape: tuple[int, ...], words: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header(shape) + (b"" if not shape[0] else bytes(64)))
    ended = quantized(capfd, model, path)
    assert ended.code == 2
    assert words in ended.line


def test_an_honest_zip_bomb(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """600 MB of zeros in 3 MB."""
    path = tmp_path / "data.npz"
    rows = 600_000_000 // 64
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(header((rows, 16)))
        for _ in range(200):
            member.write(bytes(rows * 64 // 200))
    ended = quantized(capfd, model, path)
    assert ended.code == 2
    assert "times" in ended.line


def written_png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def huge(path: Path) -> None:
    path.write_bytes(written_png(100_000, 100_000, zlib.compress(bytes(100))))


def just_within_pillow(path: Path) -> None:
    """170 million pixels, which Pillow would warn of and decode."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(13_001)) for _ in range(13_000))
    path.write_bytes(written_png(13_000, 13_000, rows + packer.flush()))


def cut_off(path: Path) -> None:
    path.write_bytes(written_png(4000, 4000, zlib.compress(bytes(100))))


def text_bomb(path: Path) -> None:
    """A compressed comment of 100 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
    whole = written_png(8, 8, zlib.compress(bytes(8 * 9)))
    content = b"a\0\0" + text
    chunk = (
        struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    )
    path.write_bytes(whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize("write", [huge, just_within_pillow, cut_off, text_bomb])
def test_pictures_that_decompress_to_far_more(
    write: Callable[[Path], None], pictured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "0.png")
    ended = quantized(capfd, pictured, folder, "--preprocess", "scale=1/255")
    assert ended.code == 2
    assert "0.png" in ended.line


def flat(path: Path, width: int, height: int, **how: object) -> None:
    """A picture of one colour, of which a band is in red."""
    picture = Image.new("RGB", (width, height), (40, 90, 200))
    picture.paste((250, 10, 10), (0, 0, width, height // 2))
    picture.save(path, **how)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("0.jpg", {"progressive": True, "subsampling": 0}),
        ("0.webp", {"method": 0}),
        ("0.png", {"compress_level": 1}),
    ],
)
def test_decoders_that_take_more_than_the_picture_are_counted(
    name: str,
    how: dict[str, object],
    pictured: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a tenth of the sizes: a progressive JPEG's coefficients, libwebp's four canvases."""
    monkeypatch.setattr(images, "MOST_BYTES", 48_000_000)
    folder = tmp_path / "data"
    folder.mkdir()
    flat(folder / name, 4200, 3000, **how)
    ended = quantized(capfd, pictured, folder, "--preprocess", "scale=1/255")
    assert ended.code == 2
    assert "has 13 million pixels" in ended.line


def test_a_large_photograph_is_decoded_at_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the memory that it may take, and it is resized to what it is; one of 200 million pixels, as phones take them, too."""
    path, larger = tmp_path / "0.jpg", tmp_path / "1.jpg"
    flat(path, 6000, 4500, quality=50)
    content = path.read_bytes()
    size = content.index(b"\xff\xc0") + 5
    larger.write_bytes(content[:size] + struct.pack(">HH", 12240, 16320) + content[size + 4 :])
    with images.quiet(), images._opened(larger) as opened:
        images._make_fit(larger, opened, "RGB")
        assert opened.size == (8160, 6120)
    monkeypatch.setattr(images, "MOST_BYTES", 30_000_000)
    framing = images.Framing("RGB", (8, 8), 8, 8)
    made, grown = grown_by(lambda: images.decode(path, framing))
    assert grown < 40_000_000
    np.testing.assert_allclose(made[0], np.full((8, 3), (250, 10, 10)), atol=4)
    np.testing.assert_allclose(made[-1], np.full((8, 3), (40, 90, 200)), atol=4)


def test_a_jpeg_of_several_scans_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose scans have a channel each is not called progressive, and takes as much."""
    path, split = tmp_path / "0.jpg", tmp_path / "1.jpg"
    flat(path, 64, 48)
    content = path.read_bytes()
    at = content.index(b"\xff\xda\x00\x0c\x03")
    split.write_bytes(content[:at] + b"\xff\xda\x00\x08\x01" + content[at + 5 : at + 7] + content[at + 11 :])
    monkeypatch.setattr(images, "MOST_BYTES", 64 * 48 * 4)
    framing = images.Framing("RGB", (8, 8), 8, 8)
    assert images.decode(path, framing).shape == (8, 8, 3)
    monkeypatch.setattr(images, "MOST_BYTES", 64 * 48)
    with Image.open(split) as opened, pytest.raises(DataError, match="JPEG of one scan"):
        images._make_fit(split, opened, "RGB")


def test_what_pillow_logs_of_a_damaged_picture_is_no_second_line(
    pictured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A TIFF of 2,048 samples per pixel."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (20, 24)).save(folder / "0.tif")
    content = (folder / "0.tif").read_bytes()
    samples = struct.pack("<HHIHH", 277, 3, 1, 3, 0)
    assert samples in content
    (folder / "0.tif").write_bytes(content.replace(samples, struct.pack("<HHIHH", 277, 3, 1, 2048, 0)))
    ended = quantized(capfd, pictured, folder, "--preprocess", "scale=1/255")
    assert ended.code == 2
    assert "0.tif" in ended.line


def test_a_picture_of_one_line(pictured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Resized until its one row has eight, it would have 320 million pixels."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (5_000_000, 1)).save(folder / "0.png")
    ended = quantized(capfd, pictured, folder, "--preprocess", "resize=8 crop=8 scale=1/255")
    assert ended.code == 2
    assert "5000000x1 pixels, too long to be resized" in ended.line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("passes = \"fold, __import__('os').system('touch ran')\"", "passes"),
        ('passes = "prune(sparsity=!!python/object/apply:os.system [touch ran])"', "prune"),
        ("passes = " + "[" * 10_000, "recipe.toml"),
        ("a" + ".a" * 31_900 + " = 1", "more than 200 parts"),
        (("a" + ".a" * 199 + "{} = 1\n") * 150, "recipe.toml"),
        ('passes = "' + "fold(" * 5_000 + '"', "passes"),
        ("seed = 1" + "0" * 10_000, "recipe.toml"),
        ("seed = 1e999", "seed"),
        ("\0", "recipe.toml"),
        ("%YAML 1.2\n---\n&a [*a, *a]", "recipe.toml"),
        ('passes = "fold"\npasses = "prune"', "recipe.toml"),
    ],
    ids=lambda value: value[:20],
)
def test_recipes_run_nothing_and_end(
    text: str,
    words: str,
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(text, encoding="utf-8")
    ended = bounded(capfd, [model, "--recipe", "recipe.toml", "--out", "out", "--quiet"])
    assert ended.code == 2
    assert words in ended.line
    assert not Path("ran").exists()
