"""Where the processes of a training with a server meet: a part of torchrun's store, in which the processes that
torchrun started say of their workers that they begin and that they are gone.
"""

import json
import os
import time
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from onnx_lathe.runtime.training.parallel.workers import MEET

_LATE_S = 5.0
"""How long an event that was announced may take to come."""


class Meeting:
    """`name` is the part of the store; torchrun's environment says where it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events = self.store()
        self.read, self.announced = 0, 0.0

    def store(self, timeout: timedelta = MEET) -> Store:
        """A connection of its own, as each thread needs one: a call that waits holds it."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        return PrefixStore(self.name, store)

    def say(self, **event: Any) -> None:
        """Tells the server."""
        number = self.events.add("events", 1)
        self.events.set(f"event/{number}", json.dumps(event))

    def heard(self) -> list[dict[str, Any]]:
        """What was said since the last call."""
        found = []
        while self.read < self.events.add("events", 0):
            key = f"event/{self.read + 1}"
            if self.events.check([key]):
                found.append(json.loads(self.events.get(key)))
            elif not self.announced:
                self.announced = time.monotonic()
                break
            elif time.monotonic() < self.announced + _LATE_S:
                break
            self.read, self.announced = self.read + 1, 0.0
        return found

    def end(self, how: str) -> None:
        self.events.set("end", how)

    def ended(self) -> str:
        """How the server ended, "" if it has not."""
        return self.events.get("end").decode() if self.events.check(["end"]) else ""
