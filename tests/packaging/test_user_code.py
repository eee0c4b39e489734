"""What a user's file imports, when names clash: nothing is mixed up, or the message says which file it is."""

import importlib
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.errors import DataError, PassError
from onnx_lathe.runtime import user_code
from onnx_lathe.runtime.data.functions import FunctionSource, open_function
from onnx_lathe.runtime.data.preprocess import Preprocess
from onnx_lathe.runtime.files.signature import InputSpec
from onnx_lathe.runtime.training.hooks import guarded, load_hook
from onnx_lathe.runtime.user_code import search_path
from tests.support.projects import write

HOOK = "def retrain(module, job):\n    return "


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves the process's path and modules as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(user_code, "_FOLDERS", [])
    known = set(sys.modules)
    yield
    for name in sys.modules.keys() - known:
        if not name.startswith("onnx_lathe"):
            del sys.modules[name]


def hook(folder: Path, text: str, **files: str) -> str:
    write(folder, {f"{name}.py": content for name, content in files.items()} | {"train.py": text})
    return f"{folder / 'train.py'}:retrain"


def opened(file: Path) -> FunctionSource:
    return open_function(
        file, "batches", [InputSpec("x", np.dtype(np.float32), (None, 2))], Preprocess(), None
    )


def refusal(spec: str) -> str:
    with pytest.raises(PassError) as caught:
        load_hook(spec)
    return str(caught.value)


def test_two_hooks_of_one_name_are_two(tmp_path: Path) -> None:
    hooks = [load_hook(hook(tmp_path / folder, HOOK + f"'{folder}'\n")) for folder in "ab"]
    assert [each(None, None) for each in hooks] == ["a", "b"]
    assert len({each.__module__ for each in hooks}) == 2


def test_an_edited_hook_is_read_again(tmp_path: Path) -> None:
    assert load_hook(hook(tmp_path, HOOK + "1\n"))(None, None) == 1
    assert load_hook(hook(tmp_path, HOOK + "2\n"))(None, None) == 2


def test_each_training_begins_with_what_the_hook_s_file_says(tmp_path: Path) -> None:
    """What a module keeps in its variables is a data function's own business, and no hook's."""
    text = "import numpy as np\nCALLS = []\n\ndef batches():\n    CALLS.append(1)\n    yield np.full((4, 2), float(len(CALLS)), np.float32)\n\n"
    spec = hook(tmp_path, text + "def retrain(module, job):\n    CALLS.append(1)\n    return len(CALLS)\n")
    source = opened(tmp_path / "train.py")
    for _ in range(2):
        assert load_hook(spec)(None, None) == 1
    assert next(source.batches(4)).inputs["x"][0, 0] == 2


def test_a_hook_and_a_data_function_of_one_name_are_two(tmp_path: Path) -> None:
    spec = hook(tmp_path / "a", HOOK + "'the hook'\n")
    write(tmp_path / "b", {"train.py": "import numpy as np\n\ndef batches():\n    yield np.ones((4, 2))\n"})
    assert opened(tmp_path / "b" / "train.py").labelled is False
    assert load_hook(spec)(None, None) == "the hook"


def test_the_file_s_own_folder_comes_before_those_on_the_path(tmp_path: Path) -> None:
    write(tmp_path / "other", {"helping.py": "VALUE = 'other'\n"})
    sys.path[:0] = [str(tmp_path / "other"), str(tmp_path / "a")]
    spec = hook(
        tmp_path / "a", "from helping import VALUE\n" + HOOK + "VALUE\n", helping="VALUE = 'beside'\n"
    )
    assert load_hook(spec)(None, None) == "beside"


def test_a_module_of_another_folder_is_not_taken_for_the_one_beside(tmp_path: Path) -> None:
    """Though it has all that is asked of it: that of an earlier call gives way."""
    text = "from helping import VALUE\n" + HOOK + "VALUE\n"
    for folder in "abab":
        spec = hook(tmp_path / folder, text, helping=f"VALUE = '{folder}'\n")
        assert load_hook(spec)(None, None) == folder


def test_a_module_that_lies_deeper_is_not_anothers(tmp_path: Path) -> None:
    """Such as one of an environment somewhere below another hook's folder."""
    assert load_hook(hook(tmp_path, HOOK + "1\n"))(None, None) == 1
    write(tmp_path / "env" / "lib", {"helping.py": "VALUE = 'installed'\n"})
    sys.path.insert(0, str(tmp_path / "env" / "lib"))
    installed = importlib.import_module("helping")
    refusal(hook(tmp_path / "b", "from helping import VALUE\n" + HOOK + "1\n", helping="VALUE = 1\n"))
    assert sys.modules["helping"] is installed


def test_a_module_that_was_there_before_says_which_file_was_found(tmp_path: Path) -> None:
    write(tmp_path / "a", {"helping.py": "VALUE = 'a'\n"})
    sys.path.insert(0, str(tmp_path / "a"))
    importlib.import_module("helping")
    message = refusal(
        hook(tmp_path / "b", "from helping import VALUE\n" + HOOK + "1\n", helping="VALUE = 1\n")
    )
    found, wanted = tmp_path / "a" / "helping.py", tmp_path / "b" / "helping.py"
    assert message.endswith(f"'helping' was found in {found}, not in {wanted}: give one of them another name")


def test_an_import_of_an_import_says_which_file_was_found(tmp_path: Path) -> None:
    write(tmp_path / "a", {"helping.py": ""})
    sys.path.insert(0, str(tmp_path / "a"))
    importlib.import_module("helping")
    spec = hook(
        tmp_path / "b", "import own\n" + HOOK + "1\n", own="from helping import VALUE\n", helping="VALUE = 1"
    )
    message = refusal(spec)
    assert "cannot import name 'VALUE'" in message
    assert f"'helping' was found in {tmp_path / 'a' / 'helping.py'}, not in {tmp_path / 'b'}" in message


def test_an_import_of_an_import_is_the_one_beside(tmp_path: Path) -> None:
    assert load_hook(hook(tmp_path / "a", "import helping\n" + HOOK + "1\n", helping=""))(None, None) == 1
    spec = hook(
        tmp_path / "b", "import own\n" + HOOK + "1\n", own="from helping import VALUE\n", helping="VALUE = 1"
    )
    assert load_hook(spec)(None, None) == 1


def test_a_data_function_says_which_file_was_found(tmp_path: Path) -> None:
    write(tmp_path / "a", {"helping.py": ""})
    sys.path.insert(0, str(tmp_path / "a"))
    importlib.import_module("helping")
    write(
        tmp_path / "b",
        {"load.py": "def batches():\n    from helping import more\n", "helping.py": "more = 1\n"},
    )
    with pytest.raises(DataError, match=r"'helping' was found in .*helping\.py, not in .*give one of them"):
        opened(tmp_path / "b" / "load.py")


def test_a_package_wins_over_a_file_and_a_bare_folder_does_not(tmp_path: Path) -> None:
    write(tmp_path, {"helping/__init__.py": "VALUE = 'package'\n", "numpy/note.txt": ""})
    spec = hook(tmp_path, "import helping, numpy\n" + HOOK + "helping.VALUE\n", helping="VALUE = 'file'\n")
    for text in ("", "\n"):  # the second time it is there already
        (tmp_path / "train.py").write_text((tmp_path / "train.py").read_text() + text)
        assert load_hook(spec)(None, None) == "package"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from lathe import optimize", "onnx_lathe"),
        ("from runtime.training import RetrainJob", "onnx_lathe.runtime"),
        ("import optimizer.gate", "onnx_lathe.optimizer"),
        ("from passes.base import Pass", "onnx_lathe.passes"),
    ],
)
def test_former_names_lead_to_the_new_one(
    line: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(user_code.__file__).resolve().parents[1]
    elsewhere = [
        entry for entry in sys.path if not (Path(entry) / "passes").is_dir()
    ]  # as installed from a wheel
    assert str(root) not in elsewhere
    monkeypatch.setattr(sys, "path", elsewhere)
    assert refusal(hook(tmp_path, f"{line}\n{HOOK}1\n")).endswith(f"; if Lathe's is meant, it is '{name}'")


def test_what_fails_while_it_trains_is_told_too(tmp_path: Path) -> None:
    write(tmp_path, {"queue.py": "def mine(): ...\n"})
    wanted = pytest.raises(
        PassError, match=r"'queue' is Python's own module, not .*queue\.py: give your file"
    )
    with wanted, guarded("the hook failed", None, tmp_path):
        queue.mine()


def test_files_named_like_python_s_modules_break_nothing_of_ours(tmp_path: Path) -> None:
    """A fresh process, in which the user's file comes before torch and what it imports."""
    names = (
        "queue",
        "types",
        "copy",
        "random",
        "logging",
        "tokenize",
        "platform",
        "secrets",
        "pickle",
        "cProfile",
    )
    text = "import numpy as np\n\ndef batches():\n    yield np.ones((4, 2))\n"
    write(
        tmp_path, {f"{name}.py": "raise SystemExit('not this one')\n" for name in names} | {"load.py": text}
    )
    code = f"""
from pathlib import Path
from tests.packaging.test_user_code import opened
source = opened(Path({str(tmp_path / "load.py")!r}))
import cProfile, secrets, onnx_lathe.runtime.training, onnx_lathe.optimizer.pipeline
print(next(source.batches(4)).count)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "4\n", done.stderr


def test_a_file_named_like_one_of_python_s_is_refused_when_it_is_meant(tmp_path: Path) -> None:
    message = refusal(hook(tmp_path, f"from wave import height\n{HOOK}height\n", wave="height = 1\n"))
    assert message.endswith(
        f"; 'wave' is Python's own module, not {tmp_path / 'wave.py'}: give your file another name"
    )


def test_a_child_imports_from_where_its_parent_does(tmp_path: Path) -> None:
    """Apart from what was put first for a user's file, which the child does for itself."""
    sys.path[:0] = [str(tmp_path), "given"]
    before = search_path()
    load_hook(hook(tmp_path, HOOK + "1\n"))
    assert sys.path[0] == str(tmp_path)
    assert search_path() == before
    assert before[:2] == [str(tmp_path), str(Path("given").absolute())]
