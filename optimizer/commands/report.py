"""`optimize report BUILD_FOLDER`: makes report.html of a finished run again."""

from pathlib import Path

from onnx_lathe.optimizer.commands.options import Parser, add_output_options, print_json


def report(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize report",
        description="Make report.html of a finished run again, from its output folder.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="BUILD_FOLDER", help="the --out of the run")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="where to write it (default: into the folder)"
    )
    parser.add_argument(
        "--model", type=Path, metavar="MODEL", help="the original, if it is no longer where the run found it"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a file that is no page of a run, and a page with layers by one without",
    )
    add_output_options(parser, "the file's name, size and what it leaves out")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import reporting
    from onnx_lathe.optimizer.report.units import size

    page = reporting.report(options.folder, options.html, model=options.model, force=options.force)
    if options.json:
        print_json(page.as_json())
        return 0
    for note in () if options.quiet else page.notes:
        print(f"left out: {note}")
    print(f"{page.path} ({size(page.size_bytes)})")
    return 0
