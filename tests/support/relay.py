"""A link with a delay: passes frames on from one network interface to another, each so much later.

    python relay.py PORT OTHER MILLISECONDS

For kernels without netem (tc). The senders' checksums have to be complete (`Machine.large_frames`), because frames
pass a raw socket here. Needs the right to open one; runs until it is ended.
"""

import collections
import select
import socket
import sys
import threading
import time

LARGEST = 1 << 16


def receive(
    source: socket.socket,
    queue: "collections.deque[tuple[float, bytes]]",
    there: threading.Condition,
    delay: float,
) -> None:
    while True:
        frame, address = source.recvfrom(LARGEST)
        if address[2] == socket.PACKET_OUTGOING:  # type: ignore[attr-defined]
            continue
        with there:
            queue.append((time.monotonic() + delay, frame))
            there.notify()


def send(
    target: socket.socket, queue: "collections.deque[tuple[float, bytes]]", there: threading.Condition
) -> None:
    while True:
        with there:
            there.wait_for(lambda: queue)
            due, frame = queue.popleft()
        wait = due - time.monotonic()
        if wait > 0:
            select.select([], [], [], wait)
        target.send(frame)


def main() -> None:
    ends = []
    for name in sys.argv[1:3]:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        end.bind((name, 0))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        ends.append(end)
    delay = float(sys.argv[3]) / 1e3
    for source, target in (ends, ends[::-1]):
        queue, there = collections.deque[tuple[float, bytes]](), threading.Condition()
        threading.Thread(target=receive, args=(source, queue, there, delay), daemon=True).start()
        threading.Thread(target=send, args=(target, queue, there), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
