"""`optimize pack` and `optimize unpack`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import artifacts
from onnx_lathe.optimizer.commands.options import Parser, add_output_options, print_json
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.runtime.pack import BEST, EFFORTS

if TYPE_CHECKING:
    from onnx_lathe.runtime.pack.files import Sizes


def pack(arguments: list[str]) -> int:
    parser = Parser(prog="optimize pack", description="Compress a model file without loss; every command takes the result as MODEL.",
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("file", type=Path, help="the ONNX file; external data is packed with it")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="the packed file (default FILE with the ending .lathe)"
    )
    parser.add_argument(
        "--effort",
        choices=EFFORTS,
        default=BEST,
        help="best: the smallest file (default); fast: ten times sooner, some per cent larger",
    )
    add_output_options(parser, "the sizes")
    options = parser.parse_args(arguments)

    from onnx_lathe.runtime.pack import files

    files.require(options.file, packed=False)
    out = artifacts.beside(options.file, options.out, files.SUFFIX)
    ui, started = Ui(quiet=options.quiet), time.perf_counter()
    ui.start(100)
    try:
        sizes = files.pack_file(
            options.file,
            out,
            options.effort,
            lambda done, total: ui.share(f"packing {options.file}", done, total),
        )
    finally:
        ui.stop()
    seconds = time.perf_counter() - started
    if options.json:
        print_json(_sizes(out, sizes) | {"effort": options.effort, "seconds": seconds})
    else:
        print(
            f"{options.file} {sizes.onnx:,} bytes -> {out} {sizes.packed:,} bytes, {sizes.ratio:.4g}x smaller"
        )
    return 0


def _sizes(out: Path, sizes: "Sizes") -> dict[str, Any]:
    return {
        "file": str(out),
        "onnx_bytes": sizes.onnx,
        "packed_bytes": sizes.packed,
        "ratio": sizes.ratio,
    }


def unpack(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize unpack", description="Restore the model file that was packed.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="the packed file")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="the ONNX file (default FILE with the ending .onnx)"
    )
    parser.add_argument("--limit", type=float, metavar="GB", help="largest model to unpack (default 4)")
    add_output_options(parser, "the sizes")
    options = parser.parse_args(arguments)
    if options.limit is not None and not 0 < options.limit < 1e9:
        raise UsageError(
            f"--limit {options.limit:g}: give the largest model to unpack in GB, such as --limit 16"
        )

    from onnx_lathe.runtime.pack import LIMIT_BYTES, files

    files.require(options.file, packed=True)
    out = artifacts.beside(options.file, options.out, ".onnx")
    sizes = files.unpack_file(
        options.file, out, LIMIT_BYTES if options.limit is None else int(options.limit * 1e9)
    )
    if options.json:
        print_json(_sizes(out, sizes))
    else:
        print(f"{options.file} {sizes.packed:,} bytes -> {out} {sizes.onnx:,} bytes")
    return 0
