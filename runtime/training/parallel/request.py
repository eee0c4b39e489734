"""Reads what the user asks of torchrun: the value of `--launch`."""

import contextlib
import io
import shlex
from dataclasses import dataclass

from onnx_lathe.errors import UsageError

_MEETING = ("rdzv_endpoint", "rdzv_id", "rdzv_backend", "master_addr", "master_port", "standalone")
_NAMES = {"rdzv_id": "none", "rdzv_backend": "static", "master_addr": "127.0.0.1"}
"""torchrun's defaults for these."""


@dataclass(frozen=True)
class Launch:
    """torchrun's own arguments, and the number of workers on this machine and on all; None where machines may come and
    go.
    """

    arguments: tuple[str, ...]
    local: int
    processes: int | None = None


def parse_launch(text: str) -> Launch:
    """Reads the value of `--launch`. Raises UsageError for what torchrun would refuse."""
    from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes

    try:
        words, script = shlex.split(text), "script"
    except ValueError as error:
        raise UsageError(f"--launch '{text}': {error}") from error
    if not words:
        raise UsageError(f"--launch '{text}' is empty; give --nproc-per-node=2, or leave it out")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            options = get_args_parser().parse_args([*words, script])
    except SystemExit as error:
        said = (complaint.getvalue().strip().splitlines() or [""])[-1].rpartition("error: ")[2]
        if "training_script" in said:
            said = f"{words[-1]} needs a value"
        if not error.code:
            said = "asks for help"
        raise UsageError(f"--launch '{text}': {said}; see: torchrun --help") from error
    if options.module or options.no_python or options.run_path:
        raise UsageError(
            f"--launch '{text}': says how to run a script; give the number of processes and where they meet only"
        )
    if options.training_script != script:
        raise UsageError(
            f"--launch '{text}': '{options.training_script}' is no option; give torchrun's options only, not what to run"
        )
    try:
        local = determine_local_world_size(options.nproc_per_node)
        least, most = parse_min_max_nnodes(options.nnodes)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--launch '{text}': {' '.join(str(error).split())}") from error
    if local < 1:
        raise UsageError(
            f"--launch '{text}': {local} processes train nothing; give --nproc-per-node=2, or leave --launch out"
        )
    if not 0 < least <= most:
        raise UsageError(
            f"--launch '{text}': --nnodes={options.nnodes} is no number of machines; give --nnodes=2"
        )
    if options.max_restarts < 0:
        raise UsageError(f"--launch '{text}': --max-restarts is {options.max_restarts}; give 0 or more")
    met = any(getattr(options, name) not in (None, "", False, _NAMES.get(name)) for name in _MEETING)
    if most > 1 and (
        options.standalone or (not options.rdzv_endpoint and options.master_addr == _NAMES["master_addr"])
    ):
        raise UsageError(
            f"--launch '{text}': {most} machines have to meet; give --rdzv-endpoint=HOST:PORT, the same on all"
        )
    # Without it, torchrun of old takes one fixed port, which two trainings on one machine would share.
    arguments = tuple(words if met else ["--standalone", *words])
    return Launch(arguments, local, local * most if least == most else None)
