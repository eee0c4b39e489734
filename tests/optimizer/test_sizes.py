"""--memory: sizes as users write them, and what is refused before anything runs."""

from pathlib import Path

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.optimizer.sizes import parse_bytes

LENET = Path(__file__).resolve().parents[2] / "models/lenet5-mnist/model.onnx"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30), ("512MiB", 512 * 2**20), ("64 kib", 2**16), ("1.5GB", 1_500_000_000), ("3 mb", 3_000_000), ("1TiB", 2**40),
        ("7kB", 7000), ("65536", 65536), (" 12 B ", 12),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "much",
        "2G",
        "-1GiB",
        "0",
        "0.2",
        "GiB",
        "1e9",
        "2 GiB please",
        "nan",
        "٣MB",
        "9" * 400,
        "99999999999TiB",
    ],
)
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--memory '.*': give a size such as 2GiB, 512MiB, 1.5GB, or a number of bytes$"
    ):
        parse_bytes(text, "--memory")


def test_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text('passes = "retrain"\nmemory = "1 MiB"\n')
    assert load_recipe(recipe).memory == 2**20
    recipe.write_text('passes = "retrain"\nmemory = "lots"\n')
    with pytest.raises(UsageError, match=r"small\.toml: memory 'lots': give a size"):
        load_recipe(recipe)
    recipe.write_text('passes = "retrain"\nmemory = 5\n')
    with pytest.raises(UsageError, match=r"small\.toml: 'memory' takes str, not 5"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "retrain", "--memory", "some"], "--memory 'some': give a size such as 2GiB"),
        (
            ["--passes", "fold", "--memory", "1GiB"],
            "no pass of the recipe retrains; add retrain to --passes, or leave --memory out",
        ),
    ],
)
def test_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(LENET), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
