"""TensorRT-RTX engines for sm86 of real networks: what builds in float32, float16 and INT8, as it is and after each recipe
of passes, and how many bytes the weights have in the engine.

    python benchmarks/tensorrt.py [build table] [--only NAME ...] [--recipes RECIPE ...] [--again] [--data-dir DIR] [--out DIR]
                                  [--networks DIR]

build   builds what has no row in --out yet, so that it may be ended and started again; needs no GPU. With --again also
        what did not build
table   prints the rows that are there: the tables of tensorrt.md

Networks are those of phone_networks.py. Weight bytes and what runs in INT8 are what TensorRT's builder says of the engine,
as `.engine.json` holds it: an engine of TensorRT-RTX also carries the source of its kernels.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networks_judge as judge
from phone_networks import Network, networks
from sets import parser_of, run_sections

RECIPES = {
    "none": "fold",
    "svd": "fold,svd(macs=0.7)",
    "tensor_train": "fold,tensor_train",
    "prune_channels": "fold,prune_channels(sparsity=0.25)",
    "codebook": "fold,codebook(bits=4)",
}
INT8 = "int8(bias_correction=false)"
"""Biases are not corrected: that takes longest, and changes neither what builds nor any size."""
SMALL = "int8, size"
"""INT8 layers that read a codebook of 4 bits."""
PRECISIONS = {"float32": "", "float16": "float16", "int8": INT8}
TARGET = "tensorrt-rtx"
INT8_FLOOR = 0.27
KEPT_FLOOR = 0.95
INTEGER = ("ddddocr-rec",)
"""Networks of integer layers, which TensorRT has not: they start as the float networks that they were made of."""
STRIP = 'fold,int8(existing=strip, layers={"*": false})'


@dataclass(frozen=True)
class Row:
    """One build. `message`: why there is none."""

    network: str
    recipe: str
    precision: str
    code: int
    message: str = ""
    engine_bytes: int = 0
    weight_bytes: int = 0
    seconds: float = 0.0
    in_float: Mapping[str, int] = field(default_factory=dict)
    """Why int8 left layers in float, and how many."""
    kept: float | None = None
    """Of the convolutions' MACs that check promises in INT8, the part that TensorRT says it computes in INT8."""

    @property
    def built(self) -> bool:
        return self.code == 0


def main() -> None:
    sections = {"build": build, "table": table}
    parser = parser_of(__doc__, sections, "tensorrt")
    parser.add_argument("--only", nargs="+", help="names of networks; all others are left out")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--again", action="store_true", help="build once more what did not build")
    parser.add_argument(
        "--networks", type=Path, help="folder of the packages' networks (default: OUT/networks)"
    )
    run_sections(parser, sections)


def precisions(recipe: str) -> tuple[str, ...]:
    return (*PRECISIONS, SMALL) if recipe == "codebook" else PRECISIONS


def build(options: argparse.Namespace) -> None:
    for network in networks(options):
        for recipe in options.recipes:
            for row in _new_rows(network, recipe, options):
                print(_said(row), flush=True)


def _new_rows(network: Network, recipe: str, options: argparse.Namespace) -> Iterator[Row]:
    """The float32 run leaves the model that the other precisions start from."""
    place = options.out / network.name / recipe
    wanted = [one for one in precisions(recipe) if _is_wanted(_kept(place, one), options.again)]
    if not wanted:
        return
    base = place / "float32"
    for precision in dict.fromkeys(["float32", *wanted]):
        first = precision == "float32"
        given = [str(_float_model(network, options.out)), "--passes", RECIPES[recipe]]
        if not first:
            given = [str(base / "model.onnx"), "--passes", PRECISIONS.get(precision, INT8)]
        row = _row(network, recipe, precision, given, place / precision)
        if precision in wanted:
            path = place / f"{precision}.json"
            path.write_text(json.dumps(asdict(row)), encoding="utf-8")
            yield row
        if not first:
            shutil.rmtree(place / precision, ignore_errors=True)
        elif not (base / "model.onnx").exists():
            break  # nothing that the other precisions could start from
    shutil.rmtree(base, ignore_errors=True)


def _float_model(network: Network, out: Path) -> Path:
    """The network's file, or that of the float network that it was quantized from."""
    if network.name not in INTEGER:
        return network.model
    place = out / network.name / "stripped"
    if not (place / "model.onnx").exists():
        arguments = [str(network.model), "--passes", STRIP, "--no-latency"]
        ran = judge.run([*arguments, "--calibration", f"{network.data}:calibration"], place)
        if ran.code:
            raise SystemExit(f"{network.name}: {ran.message}")
    return place / "model.onnx"


def _is_wanted(row: Row | None, again: bool) -> bool:
    return row is None or (again and not row.built)


def _kept(place: Path, precision: str) -> Row | None:
    path = place / f"{precision}.json"
    return Row(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _row(network: Network, recipe: str, precision: str, given: Sequence[str], place: Path) -> Row:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    target = f"onnx,{TARGET}(compute=sm86{', prefer=size' if precision == SMALL else ''})"
    arguments = [*given, "--target", target, "--threads", "1", "--no-latency"]
    ran = judge.run([*arguments, "--calibration", f"{network.data}:calibration"], place)
    found = next((one for one in ran.report.get("targets", []) if one["name"] == TARGET), None)
    if ran.failure or found is None or found["error"]:
        message = ran.failure or ran.message
        return Row(network.name, recipe, precision, ran.code or 1, message, seconds=ran.seconds)
    return Row(
        network.name,
        recipe,
        precision,
        code=0,
        engine_bytes=found["details"]["engine_bytes"],
        weight_bytes=found["details"]["weights_bytes"],
        kept=_convolutions(found["details"]["int8"]),
        seconds=ran.seconds,
        in_float=_left(ran.report["steps"][-1]) if "int8" in precision else {},
    )


def _convolutions(proof: Mapping[str, Any] | None) -> float | None:
    kept = (proof or {}).get("convolutions")
    return None if kept is None else kept["kept"]


def _left(step: Mapping[str, Any]) -> dict[str, int]:
    return dict(Counter(skip["reason"] for skip in step["skips"]).most_common(3))


def _said(row: Row) -> str:
    what = f"engine {_mb(row.engine_bytes)}, weights {_mb(row.weight_bytes)}" if row.built else row.message
    return f"{row.network}, {row.recipe}, {row.precision}: {what} ({row.seconds:.0f} s)"


def table(options: argparse.Namespace) -> None:
    found = [
        row
        for recipe in RECIPES
        for place in sorted(options.out.glob(f"*/{recipe}"))
        for precision in precisions(recipe)
        if (row := _kept(place, precision)) and (not options.only or row.network in options.only)
    ]
    names = list(dict.fromkeys(row.network for row in found))
    for recipe in options.recipes:
        rows = {(row.network, row.precision): row for row in found if row.recipe == recipe}
        if rows:
            print(f"### {recipe}: `{RECIPES[recipe]}`\n")
            _print_sizes(rows, recipe, names, _floats(found))
    _print_missed(found, _floats(found))
    _print_kept(found)
    failed: dict[str, list[str]] = {}
    for row in found:
        if not row.built:
            failed.setdefault(row.message, []).append(f"{row.network}, {row.recipe}, {row.precision}")
    print("### What does not build\n\n| reason | network, recipe, precision |\n|---|---|")
    for message, which in failed.items():
        print(f"| {message.replace('|', '/')} | {'; '.join(which)} |")
    print(f"\n{sum(row.built for row in found)} of {len(found)} build; of {len(names)} networks.")


def _floats(rows: Sequence[Row]) -> dict[str, int]:
    """Weight bytes in the engine of the network as it is, in float32."""
    return {
        row.network: row.weight_bytes for row in rows if row.recipe == "none" and row.precision == "float32"
    }


def _print_sizes(
    rows: Mapping[tuple[str, str], Row], recipe: str, names: Sequence[str], floats: Mapping[str, int]
) -> None:
    """A line for each network: engine and weights, the latter also as a share of those of float32 without a recipe."""
    wanted = precisions(recipe)
    print("| network | " + " | ".join(f"{one}: engine | weights" for one in wanted) + " |")
    print("|---|" + "---|---|" * len(wanted))
    for name in names:
        cells = []
        for precision in wanted:
            row = rows.get((name, precision))
            if row is None:
                cells += ["", ""]
            elif row.built:
                share = f" ({row.weight_bytes / floats[name]:.3f})" if floats.get(name) else ""
                cells += [_mb(row.engine_bytes), _mb(row.weight_bytes) + share]
            else:
                cells += ["not built", ""]
        if any(cells):
            print("| " + " | ".join([name, *cells]) + " |")
    print()


def _print_missed(rows: Sequence[Row], floats: Mapping[str, int]) -> None:
    """INT8 of networks as they are, above the floor."""
    print(
        f"### INT8 weights above {INT8_FLOOR} of float32's\n\n| network | share | layers in float |\n|---|---|---|"
    )
    for row in rows:
        share = row.weight_bytes / floats[row.network] if floats.get(row.network) else 0.0
        if row.recipe == "none" and row.precision == "int8" and share > INT8_FLOOR:
            reasons = "; ".join(f"{count}: {reason}" for reason, count in row.in_float.items())
            print(f"| {row.network} | {share:.3f} | {reasons} |")
    print()


def _print_kept(rows: Sequence[Row]) -> None:
    """How many of the INT8 engines keep what was promised, and those that do not."""
    proven = [row for row in rows if row.kept is not None]
    missed = [row for row in proven if row.kept is not None and row.kept < KEPT_FLOOR]
    print(
        f"### Proof of INT8\n\n{len(proven) - len(missed)} of {len(proven)} engines with convolutions promised in INT8 run at "
        f"least {KEPT_FLOOR:.0%} of those MACs in INT8, by the builder's log; the least is "
        f"{min((row.kept for row in proven if row.kept is not None), default=0.0):.3f}.\n"
    )
    for row in missed:
        print(f"- {row.network}, {row.recipe}, {row.precision}: {row.kept:.3f}")


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
