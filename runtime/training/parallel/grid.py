"""Reads how the processes of a training are to share it out: the value of `--parallel`.

    data=2,height=2        a grid: two groups with their own samples, and in each two workers with half of every image
    filter=4  channel=2    one way of splitting layers; `data` may be left out: it is the rest
    auto  auto=4           groups (of four at most) and a way for each layer, by a model of its cost and by timing
    pipeline=4,micro=8     four stages, batches cut into eight
    server               process 0 serves weights, the others send gradients when they have them
    server,wait=2,aware  two gradients make an update, and its rate is divided by how old they are
    server,wait=20,late=drop   22 processes: the first 20 gradients of 21 workers make an update

It needs no PyTorch, so that a mistake is told before anything starts.
"""

from dataclasses import dataclass

from onnx_lathe.errors import UsageError, nearest

SPLITS = ("height", "width", "filter", "channel", "auto")
SCHEDULES = ("1f1b", "gpipe")
LATE = ("use", "drop")
AWARE = ("", "true")
FORMS = '"data=2,height=2", "filter=4", "auto", "pipeline=2,micro=8" or "server"'


@dataclass(frozen=True)
class Grid:
    """`data` groups of `parts` workers: the groups share out the samples of a batch, the workers of a group its layers
    by `split`, one of SPLITS or "".
    """

    data: int
    split: str = ""
    parts: int = 1


@dataclass(frozen=True)
class Pipeline:
    """`data` pipelines of `stages` workers; each batch passes through in `micro` pieces, in the order of `schedule`, one
    of SCHEDULES.
    """

    data: int
    stages: int
    micro: int
    schedule: str = "1f1b"


@dataclass(frozen=True)
class Server:
    """`wait` gradients of `workers` make an update; one that was computed from older weights counts with `late`, one of
    LATE. `aware`: the rate is divided by the staleness (Zhang et al., "Staleness-aware async-SGD", IJCAI 2016).
    """

    workers: int
    wait: int = 1
    late: str = "use"
    aware: bool = False


Layout = Grid | Pipeline | Server


@dataclass(frozen=True)
class Parallel:
    """What the text asks for, before the number of processes is known."""

    text: str
    words: tuple[tuple[str, str], ...]

    @property
    def serves(self) -> bool:
        """Whether process 0 serves the others, which then share no step."""
        return any(name == "server" for name, _ in self.words)

    def over(self, processes: int) -> Layout:
        """Shared out over so many processes. Raises UsageError if the sizes do not multiply to their number."""
        named = dict(self.words)
        if "server" in named:
            return self._server(named, processes)
        parts = next(
            (self._size(name, named[name]) for name in (*SPLITS, "pipeline") if named.get(name)), None
        )
        data = self._size("data", named["data"]) if "data" in named else None
        if parts is None and "auto" in named:
            parts = processes // (data or 1)
        parts = parts or 1
        data = processes // parts if data is None else data
        if data * parts != processes or not data:
            wanted = f"{data * parts} of them" if "data" in named else f"a multiple of {parts}"
            leave = "; or leave data= out" if "data" in named and processes % parts == 0 else ""
            raise UsageError(
                f"--parallel '{self.text}': is {max(data, 1)} x {parts} workers, and {processes} processes start; "
                f"have --launch start {wanted}, or give other sizes{leave}"
            )
        if "pipeline" in named:
            micro = self._size("micro", named["micro"]) if "micro" in named else 2 * parts
            return Pipeline(data, parts, micro, named.get("schedule", SCHEDULES[0]))
        split = next((name for name in SPLITS if name in named), "")
        return Grid(data, split if parts > 1 else "", parts)

    def _server(self, named: dict[str, str], processes: int) -> Server:
        workers = processes - 1
        if workers < 1:
            raise UsageError(
                f"--parallel '{self.text}': one process serves, and none is left to train; start two or more"
            )
        wait = self._size("wait", named["wait"]) if "wait" in named else 1
        if wait > workers:
            raise UsageError(
                f"--parallel '{self.text}': waits for {wait} gradients, and {workers} workers send them; give wait={workers} or less"
            )
        return Server(workers, wait, named.get("late", LATE[0]), named.get("aware", "false") in AWARE)

    def _size(self, name: str, text: str) -> int:
        if not text:
            raise UsageError(f"--parallel '{self.text}': {name} needs a number, such as {name}=2")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
            raise UsageError(f"--parallel '{self.text}': {name}={text} is no number of 1 or more")
        return int(text)


def parse_parallel(text: str) -> Parallel:
    """Reads the value of `--parallel`. Raises UsageError naming the word that is wrong."""
    words: list[tuple[str, str]] = []
    for word in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not name or (equals and not value):
            raise UsageError(f"--parallel '{text}': '{word}' says nothing; give {FORMS}")
        if name in dict(words):
            raise UsageError(f"--parallel '{text}': {name} is there twice")
        words.append((name, value))
    parallel = Parallel(text, tuple(words))
    named = dict(words)
    ways = [name for name in ("server", "pipeline", *SPLITS) if name in named]
    if len(ways) > 1:
        raise UsageError(
            f"--parallel '{text}': {ways[0]} and {ways[1]} do not go together; keep one of them, beside data="
        )
    way = ways[0] if ways else "data"
    known = {"server": ("wait", "late", "aware"), "pipeline": ("data", "micro", "schedule")}.get(
        way, ("data",)
    )
    for name, value in words:
        if name not in (way, *known):
            everywhere = ("data", "server", "pipeline", *SPLITS, "wait", "late", "aware", "micro", "schedule")
            said = f"does not go with {way}" if name in everywhere else "is nothing that it knows"
            meant = "" if name in everywhere else nearest(name, everywhere)
            raise UsageError(f"--parallel '{text}': {name} {said}; give {FORMS}{meant}")
        if name == "server":
            if value:
                raise UsageError(f"--parallel '{text}': server takes no number; all processes but one work")
        elif name == "aware" and not value:
            continue
        elif name in _CHOICES:
            if value not in _CHOICES[name]:
                raise UsageError(f"--parallel '{text}': {name}={value}; give {' or '.join(_CHOICES[name])}")
        elif value or name != "auto":
            parallel._size(name, value)
    if named.get("late") == "drop" and "wait" not in named:
        raise UsageError(
            f"--parallel '{text}': late=drop without wait= has each gradient make an update and drops all others; "
            "give wait=, the gradients of an update"
        )
    return parallel


_CHOICES = {"schedule": SCHEDULES, "late": LATE, "aware": ("true", "false")}
