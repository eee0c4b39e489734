"""The value of `--parallel`."""

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel.grid import Grid, Layout, Pipeline, Server, parse_parallel


@pytest.mark.parametrize(
    ("text", "processes", "layout"),
    [
        ("data=4", 4, Grid(4)),
        ("data=2, height=2", 4, Grid(2, "height", 2)),
        ("width=2", 6, Grid(3, "width", 2)),
        ("filter=4", 4, Grid(1, "filter", 4)),
        ("channel=1", 2, Grid(2)),
        ("auto", 4, Grid(1, "auto", 4)),
        ("data=2,auto", 4, Grid(2, "auto", 2)),
        ("auto=2", 4, Grid(2, "auto", 2)),
        ("pipeline=2", 2, Pipeline(1, 2, 4)),
        ("pipeline=2,micro=8,schedule=gpipe,data=2", 4, Pipeline(2, 2, 8, "gpipe")),
        ("server", 3, Server(2)),
        ("server,wait=20,late=drop,aware=true", 22, Server(21, 20, "drop", True)),
        ("server,wait=2,aware", 4, Server(3, 2, "use", True)),
        ("server,aware=false", 2, Server(1)),
    ],
)
def test_it_is_read(text: str, processes: int, layout: Layout) -> None:
    assert parse_parallel(text).over(processes) == layout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' says nothing"),
        ("height=", "'height=' says nothing"),
        ("hight=2", "or \"server\"; did you mean 'height'?"),
        ("hight=2", "hight is nothing that it knows"),
        ("height", "height needs a number, such as height=2"),
        ("height=0", "height=0 is no number"),
        ("height=two", "height=two is no number"),
        ("height=2,height=2", "height is there twice"),
        ("height=2,filter=2", "height and filter do not go together"),
        ("server=2", "server takes no number"),
        ("server,data=2", "data does not go with server"),
        ("height=2,micro=4", "micro does not go with height"),
        ("pipeline=2,schedule=zb", "schedule=zb; give 1f1b or gpipe"),
        ("server,late=never", "late=never; give use or drop"),
        ("server,late=drop", "late=drop without wait= has each gradient make an update"),
        ("server,height=2", "server and height do not go together"),
        ("server,pipeline=2", "server and pipeline do not go together"),
        ("server,wait=0", "wait=0 is no number of 1 or more"),
        ("server,wait", "wait needs a number, such as wait=2"),
        ("server,aware=yes", "aware=yes; give true or false"),
    ],
)
def test_a_mistake_is_told(text: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_parallel(text)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "processes", "told"),
    [
        ("data=2,height=2", 2, "is 2 x 2 workers, and 2 processes start"),
        (
            "height=3",
            4,
            "is 1 x 3 workers, and 4 processes start; have --launch start a multiple of 3, or give other sizes",
        ),
        ("data=2,height=2", 8, "have --launch start 4 of them, or give other sizes; or leave data= out"),
        ("height=4", 2, "is 1 x 4 workers, and 2 processes start"),
        ("server", 1, "none is left to train"),
        ("server,wait=3", 3, "waits for 3 gradients, and 2 workers send them"),
    ],
)
def test_sizes_have_to_fit_the_processes(text: str, processes: int, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_parallel(text).over(processes)
    assert told in str(refused.value)
