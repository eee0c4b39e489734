"""A training with a server on two machines, from the command line. What becomes of one that is cut off takes longer:
`python benchmarks/parallel_cut.py`.
"""

from pathlib import Path

import pytest

from tests.support.namespaces import machines
from tests.support.served_machines import prepared, started

pytestmark = pytest.mark.slow  # two commands, each with torchrun and its processes: 10 s on two idle cores

LIMIT_S = 240.0
"""Of what takes seconds, where much else runs."""


def test_a_mistake_on_one_machine_ends_both_in_one_line(tmp_path: Path) -> None:
    """torchrun starts all anew, and no process makes the mistake again."""
    place = prepared(tmp_path)
    passes = "retrain(epochs=200, batch=16, rate=0.05, distill=0, optimizer=sgd)"
    with machines(2) as made:
        commands = started(made, place, passes, "wrong", restarts=2)
        said = [command.communicate(timeout=LIMIT_S)[0] for command in commands]
    assert (place / "failed").read_text() == "once "
    for command, text in zip(commands, said, strict=True):
        assert command.returncode == 2, text
        assert "the disk is gone" in text
        assert "Traceback" not in text
