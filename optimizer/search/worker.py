"""A further process of a search: `python -m onnx_lathe.optimizer.search.worker`, its request on standard input.

It ends when its time is up, when it is asked to, when its caller's end of the pipe closes, or with its caller; but
never in the middle of a write, which would leave the journal locked.
"""

import os
import pickle
import signal
import sys
import threading
import time

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.search.clock import Clock, OutOfTimeError
from onnx_lathe.optimizer.search.loop import Loop
from onnx_lathe.optimizer.search.proposals import from_json
from onnx_lathe.optimizer.search.request import open_search
from onnx_lathe.optimizer.search.storage import Shared, end_between, open_storage

TABLE, BEGUN = "lathe:table", "lathe:begun"
"""Attributes of a study: what was measured layer by layer, and that its first trials are there."""
WAIT_S = 0.2
STANDARD_INPUT = 0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who ends its children
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=end_between).start())
    request, ends, reserve, number = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    clock = Clock(ends)
    clock.reserve = reserve
    try:
        opened = open_search(request, clock, lambda text: None, request.threads)
        storage = open_storage(request.storage)
        shared = Shared.open(
            storage, opened.study_name, opened.bench.space, seed=request.recipe.seed + number
        )
        while not shared.noted(BEGUN) and clock.left > 0:  # the caller measures sensitivity meanwhile
            time.sleep(WAIT_S)
        table = from_json(shared.noted(TABLE) or {})
        Loop(opened.bench, shared, table, request.recipe.seed + number, request.trials).run()
    except OutOfTimeError:
        return 0
    except LatheError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with_caller() -> None:
    # not by sys.stdin: an interpreter that ends while another thread reads it is aborted
    while os.read(STANDARD_INPUT, 1 << 12):
        pass
    end_between()


if __name__ == "__main__":
    sys.exit(main())
