"""A process of a training with a server, as torchrun starts it: `python -m
onnx_lathe.runtime.training.parallel.supervisor FOLDER`.

torchrun ends all processes when one of them dies. So the process of rank 0 serves, and every other one only starts a
worker, in a process of its own with which it does not die: it tells the server, and starts another if --max-restarts
allows it. It imports little, because all of them start at once.
"""

import os
import sys
import time
from pathlib import Path

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from onnx_lathe.runtime.processes import end_with_caller, environment, running
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.meeting import Meeting
from onnx_lathe.runtime.training.parallel.messages import Line
from onnx_lathe.runtime.training.parallel.workers import MEET, met

LOOK_S = 0.1
"""Between two looks at whether a worker or the training is over."""

ENDING_S = 2.0
"""How long a worker has to hear that the training is over, before it is ended in the midst of a step."""


def main(folder: Path) -> None:
    """Serves, or supervises a worker. What ends the training for all is in error.json, and ends the process."""
    end_with_caller(folder)
    if (folder / "error.json").exists() and os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return  # torchrun started all anew after a mistake, which they would only make again
    store, rank, size = next(rendezvous("env://", timeout=MEET))
    meeting = Meeting(met(store, rank, size))
    if failed_before(folder, meeting.store(), rank, size):
        return
    if rank == 0:
        # PyTorch and ONNX Runtime take seconds to import
        from onnx_lathe.runtime.training.parallel import server_worker

        server_worker.main(folder, meeting, size)
    else:
        lifeline.hold(meeting.store(), rank, lifeline.end, spreads=False)
        sys.exit(supervise(folder, meeting, rank, size))


def failed_before(folder: Path, store: Store, rank: int, size: int) -> bool:
    """Whether processes before these ended by a mistake, on whatever machine; error.json then says it on each. All of
    them have to call it.
    """
    failed = folder / "error.json"
    if failed.exists():
        store.set("failed", failed.read_text(encoding="utf-8"))
    _all(store, "looked", size, waits=True)
    found = bool(store.check(["failed"]))
    if found and os.environ["LOCAL_RANK"] == "0" and not failed.exists():
        failed.write_bytes(store.get("failed"))
    # process 0, which may hold the store, ends last
    _all(store, "read", size, waits=rank == 0)
    return found


def _all(store: Store, what: str, size: int, waits: bool) -> None:
    """Says that this process did so; `waits` until all `size` have."""
    if store.add(what, 1) == size:
        store.set(f"{what}/all", "")
    if waits:
        store.wait([f"{what}/all"], MEET)


def supervise(folder: Path, meeting: Meeting, rank: int, size: int) -> int:
    """The exit code: 0 if the training ended well, also without this worker."""
    receives = os.environ["LOCAL_RANK"] == "0"  # rank 0's machine has its own
    if receives:
        meeting.say(receives=rank)
    done, most = (
        int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    try:
        more = max(0, most - done)
        for turn in range(1 + more):
            number = rank + turn * size
            meeting.say(starts=number, rank=rank)
            code = work(folder, meeting, number)
            if (folder / "error.json").exists():
                meeting.say(fails=(folder / "error.json").read_text(encoding="utf-8"))
                return 1
            if code == 0 or meeting.ended():
                break
            why = f"was ended by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
            if code == -9:
                why += " (as the system does when memory runs out)"
            meeting.say(gone=number, why=why, again=turn < more)
        while not meeting.ended():
            time.sleep(LOOK_S)
        if meeting.ended() != "well":
            return 1
        if receives:
            receive_result(folder, Line(meeting.store(), f"result{rank}", 1, MEET))
        return 0
    except RuntimeError as error:  # the store is gone, and with it the server
        sys.stderr.write(f"RuntimeError: lost the server: {error}\n")
        return 0 if not receives else 1


def work(folder: Path, meeting: Meeting, number: int) -> int:
    """The exit code of worker `number`, which is ended once the training is over."""
    command = [
        sys.executable,
        "-m",
        "onnx_lathe.runtime.training.parallel.server_worker",
        str(folder),
        meeting.name,
    ]
    with running([*command, str(number)], environment(), stdout=None) as child:
        last = None
        while child.process.poll() is None and (last is None or time.monotonic() < last):
            time.sleep(LOOK_S)
            if last is None and meeting.ended():
                last = time.monotonic() + ENDING_S
        code = child.process.poll()
    return 0 if code is None else code


def receive_result(folder: Path, line: Line) -> None:
    """Writes what launch reads, as the server's machine has it; result.json comes last."""
    arrays, table = line.receive()[1]
    (folder / "result.npz").write_bytes(arrays.numpy().tobytes())
    (folder / "result.part").write_bytes(table.numpy().tobytes())
    (folder / "result.part").replace(folder / "result.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
