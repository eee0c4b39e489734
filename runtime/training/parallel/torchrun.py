"""torchrun, for as long as there is the process that started it: `python -m
onnx_lathe.runtime.training.parallel.torchrun FOLDER ARGUMENTS`.

While torchrun waits for other machines it has no worker that would see its parent die.
"""

import os
import shutil
import signal
import sys
import threading
import time

from torch.distributed.run import main

GRACE_S = 5.0
"""How long torchrun has to end its workers; they see for themselves that their input is closed."""


def watch(folder: str) -> None:
    """Waits until standard input is closed, then ends this process and removes the folder."""
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(sys.argv[1],), daemon=True).start()
    main(sys.argv[2:])
