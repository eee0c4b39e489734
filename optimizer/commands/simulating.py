"""`optimize simulate`: time per step on machines that nobody has."""

from pathlib import Path

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.commands.options import Parser, add_output_options, check_file, print_json


def _parser() -> Parser:
    parser = Parser(
        prog="optimize simulate",
        description="Time per training step against the number of machines, by strategy, from a model of its cost.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", type=Path, help="the ONNX file; its weights are not read")
    add("--parallel", action="append", default=[], metavar="P",
        help="a strategy: data, height, width, filter, channel or auto, in the best groups, or one as --parallel of a training "
        "takes it: height=4, pipeline=4,micro=8; once for each (default: data, height, filter, channel)")  # fmt: skip
    add("--machines", type=int, default=1024, metavar="N", help="up to so many (default 1024)")
    add("--link", default="100Gb/s,2us", metavar="L", help="bandwidth and latency (default 100Gb/s,2us)")
    add("--rate", default="10TFLOP/s", metavar="R", help="arithmetic of a machine (default 10TFLOP/s)")
    add("--memory", metavar="M", help="of a machine, such as 16GB (default: enough for anything)")
    add("--batch", type=int, default=256, metavar="N", help="samples a step, strong scaling (default 256)")
    add("--each", type=int, default=32, metavar="N", help="samples a machine, weak scaling (default 32)")
    add("--shape", action="append", default=[], metavar="NAME=1x3x224x224",
        help="size of an input that the model leaves open; once for each input")  # fmt: skip
    add("--stragglers", metavar="S",
        help="how much longer arithmetic takes, drawn for each machine and step: lognormal=0.3, exponential=0.2 or slow=0.05x10")  # fmt: skip
    add("--backups", type=int, metavar="N", help="machines that nobody waits for (default: 5 %% of all)")
    add("--seed", type=int, default=0, help="of --stragglers (default 0)")
    add("--html", type=Path, metavar="FILE", help="also write a page with the curves")
    add_output_options(parser, "all points")
    return parser


def simulate(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)

    from onnx_lathe.errors import printable
    from onnx_lathe.optimizer.inspecting.sizes import parse_shapes
    from onnx_lathe.optimizer.report.printing import Printer
    from onnx_lathe.optimizer.report.simulation import show_simulation
    from onnx_lathe.optimizer.report.simulation_page import page
    from onnx_lathe.optimizer.simulating import simulate as simulating
    from onnx_lathe.optimizer.simulating.machines import parse_machine
    from onnx_lathe.optimizer.simulating.scaling import parse_strategies
    from onnx_lathe.optimizer.simulating.stragglers import parse_stragglers
    from onnx_lathe.runtime.files.writing import replacing

    check_file(options.html, ".html", [options.model])
    request = simulating.Request(
        options.model,
        parse_strategies(options.parallel),
        parse_machine(options.rate, options.link, options.memory),
        options.machines,
        options.batch,
        options.each,
        parse_shapes(options.shape),
        None if options.stragglers is None else parse_stragglers(options.stragglers),
        options.backups,
        options.seed,
    )
    simulating.check(request)
    found = simulating.simulate(request)
    if options.html is not None:
        with replacing(options.html) as file:
            file.write(page(found, printable(options.model.name)))
    if options.json:
        print_json(found.as_json())
    else:
        show_simulation(found, Printer(highlight=False, emoji=False))
    return ExitCode.DONE
