"""The server of a training, and one of its workers: `python -m onnx_lathe.runtime.training.parallel.server_worker FOLDER
MEETING NUMBER`, which supervisor.py starts.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onnx_lathe.runtime.processes import end_with_caller
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.folder import (
    described,
    is_lost,
    log_of,
    read_given,
    read_job,
    report,
    write_once,
    write_result,
)
from onnx_lathe.runtime.training.parallel.meeting import Meeting
from onnx_lathe.runtime.training.parallel.messages import Line
from onnx_lathe.runtime.training.parallel.server import Server
from onnx_lathe.runtime.training.parallel.server_parallel import (
    ServerParallel,
    WorkerParallel,
    checked,
    group_of,
)
from onnx_lathe.runtime.training.parallel.workers import MEET
from onnx_lathe.runtime.training.session import train

LOOK_S = 0.05
"""Between two looks at what was said of workers."""

KEPT_BACK = "result.part"
"""What result.json is called until other machines have the result: once it is there, launch ends torchrun."""

RESULT_S = 60.0
"""How long another machine may take to fetch the result."""


def main(folder: Path, meeting: Meeting, processes: int) -> None:
    """Serves, and leaves the result in the folder of every machine."""
    job = read_job(folder)
    how = "badly"
    try:
        with contextlib.redirect_stderr(sys.stdout):
            reception = Reception(meeting, folder)
            lifeline.hold(meeting.store(), 0, reception.lose, spreads=False)
            policy, settings, notes = checked(job, processes)
            strategy = ServerParallel(meeting.store(), settings, policy)
            reception.begin(strategy)
            given = read_given(folder, job, report)
            values, metrics = train(given.setup, given.model, settings, given.shaping, strategy, given.tiles)
            told = [] if strategy.served is None else strategy.served.losses()
            write_result(folder, values, given.shaping, metrics, notes + told, KEPT_BACK)
            how = "well"
            if strategy.served is not None:
                strategy.served.close()
            meeting.end(how)
            reception.hand_out()
    except Exception as error:
        write_once(folder / "error.json", described(error, job["log"], log_of(folder, job)))
        raise
    finally:
        if how != "well":
            meeting.end(how)
    sys.stdout.flush()
    os._exit(0)  # a thread may wait for a worker that is gone


class Reception:
    """Hears of workers, and has the server answer each in a thread of its own."""

    def __init__(self, meeting: Meeting, folder: Path) -> None:
        self.meeting, self.folder = meeting, folder
        self.gone: list[lifeline.Lost] = []
        self.receivers: list[int] = []
        """Ranks that fetch the result, one on each other machine."""

    def begin(self, strategy: ServerParallel) -> None:
        threading.Thread(target=self._listen, args=(strategy,), daemon=True).start()

    def lose(self, lost: lifeline.Lost) -> None:
        """A machine fell silent."""
        self.gone.append(lost)

    def _listen(self, strategy: ServerParallel) -> None:
        strategy.ready.wait()
        server, told = strategy.served, 0
        assert server is not None
        while True:
            for event in self.meeting.heard():
                self._hear(server, event)
            for lost in self.gone[told:]:
                server.lose_machine(lost.rank, lost.workers, f"is on {lost.host}, {lost.why}")
                told += 1
            time.sleep(LOOK_S)

    def _hear(self, server: Server, event: Mapping[str, Any]) -> None:
        if "receives" in event:
            self.receivers.append(event["receives"])
        elif "starts" in event:
            server.join(event["starts"], event["rank"])
            arguments = self.meeting.store(), event["starts"]
            threading.Thread(target=server.serve, args=arguments, daemon=True).start()
        elif "gone" in event:
            server.lose(event["gone"], event["why"], event["again"])
        elif "fails" in event:
            write_once(self.folder / "error.json", event["fails"].encode())
            server.fail(json.loads(event["fails"])["message"])

    def hand_out(self) -> None:
        """Sends the result to the other machines, but those that are lost; then it is here, too."""
        parts = [
            torch.frombuffer(bytearray((self.folder / name).read_bytes()), dtype=torch.uint8)
            for name in ("result.npz", KEPT_BACK)
        ]

        def send(rank: int) -> None:
            with contextlib.suppress(RuntimeError):
                Line(self.meeting.store(), f"result{rank}", 0, MEET).send([], *parts)

        threads = {
            rank: threading.Thread(target=send, args=(rank,), daemon=True)
            for rank in self.receivers
            if not self._is_gone(rank)
        }
        for thread in threads.values():
            thread.start()
        until = time.monotonic() + RESULT_S
        for rank, thread in threads.items():
            while thread.is_alive() and not self._is_gone(rank) and time.monotonic() < until:
                thread.join(LOOK_S)
        (self.folder / KEPT_BACK).replace(self.folder / "result.json")

    def _is_gone(self, rank: int) -> bool:
        return any(lost.rank <= rank < lost.rank + lost.workers for lost in self.gone)


def work(folder: Path, name: str, number: int) -> None:
    """Computes gradients until the server has enough. A mistake, which all workers would meet, is in error.json."""
    end_with_caller()
    rank, local, neighbours, processes = (
        int(os.environ[key]) for key in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    )
    job = read_job(folder)
    try:
        with contextlib.redirect_stderr(sys.stdout):
            _, settings, _ = checked(job, processes)
            group = group_of(job, rank, local, neighbours)
            given = read_given(folder, job, report if local == 0 else lambda line: None)
            strategy = WorkerParallel(Meeting(name).store(), settings, number, group)
            train(replace(given.setup, state=None), given.model, settings, None, strategy, given.tiles)
    except Exception as error:
        if not is_lost(error):
            write_once(folder / "error.json", described(error, job["log"], log_of(folder, job)))
        raise
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
