"""Every command of the README and of docs/ runs, in the order of its page, on a small network and its data.

What is built for a GPU is built by a stand-in, since no test has one; what runs on it is parsed alone.
"""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.optimizer.build import configured_targets
from onnx_lathe.optimizer.cli import COMMANDS, COMPILE, command, main
from onnx_lathe.optimizer.commands.compile import attached
from onnx_lathe.optimizer.commands.examples import EXAMPLES
from onnx_lathe.optimizer.commands.options import parser_of
from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.recipe import Recipe, load_recipe, parse_calls
from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.core.registry import find as find_target
from onnx_lathe.runtime.targets.core.registry import targets
from onnx_lathe.runtime.targets.qnn import library
from tests.support.documents import PAGES, Command, commands, inline_commands, recipes_in, scripts, stand_ins
from tests.support.house import ROOT

SEARCHED = ("60s", 2)
"""The budget and the trials of every search here; tests/optimizer/test_search.py judges what one finds."""
PARSED_ALONE = {
    r"\.engine ": "runs an engine on a GPU",
    r"--launch": "starts torchrun; tests/runtime/test_training_launch.py does",
}
"""Pattern of a command -> why it is not run here."""
if not library.simulates():
    PARSED_ALONE[r"qnn|model_ctx"] = "needs onnxruntime-qnn, on Linux with x86-64"
TESTED_ELSEWHERE = {
    "docs/api.md": "tests/optimizer/test_api.py",
    "docs/diff.md": "tests/optimizer/test_diff_docs.py",
    "docs/from-implicit-int8.md": "tests/optimizer/test_implicit_int8_page.py",
    "docs/gates.md": "tests/optimizer/test_gates_page.py",
    "docs/inspect.md": "tests/optimizer/test_inspect_docs.py",
}
"""Page -> the test that runs it, with what the page says of its own files."""
FRAGMENTS = {
    "docs/passes.md": "its pass would have to lie in passes/",
    "docs/targets.md": "imports for a plug-in",
}
"""Page -> why its blocks of Python are compiled alone."""
MAY_FAIL_ITS_GATE = {
    r"packed ratio >= 50": "a network of 8,800 weights has no fifty times smaller file",
    r"prune\(sparsity=0\.9": "one or two epochs on 192 samples bring no such network back",
    r"^(search|auto) ": "of two trials none may pass",
}
"""Pattern of a command -> why its gate may fail here, with exit code 3."""
MADE = {
    "recipe.toml": "init|model.onnx|--quiet",
    "model.lathe": "pack|model.onnx|--effort|fast|--quiet",
    "int8.onnx": "model.onnx|--passes|fold, int8|--data|data.npz|--no-latency|--quiet|--out|quantized",
    "made": "model.onnx|--passes|fold, int8|--data|data.npz|--no-latency|--quiet|--out|made",
    "build/model.onnx": "model.onnx|--passes|fold, int8|--data|data.npz|--no-latency|--quiet|--out|build",
}
"""File that a command reads, where none before it has made it -> the command that makes it."""
GPU_TARGETS = ("tensorrt", "tensorrt-rtx")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    stand_ins(folder)
    return folder


@pytest.fixture
def desk(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins as current directory, and builders of engines that write a file."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path, target_is_directory=path.is_dir())
    monkeypatch.chdir(tmp_path)

    def built(name: str) -> Callable[..., Artifact]:
        def build(self: object, model: Path, directory: Path, *_: object) -> Artifact:
            path = directory / f"model.{name}.engine"
            path.write_bytes(b"engine")
            return Artifact((path,), 6)

        return build

    for name in GPU_TARGETS:
        monkeypatch.setattr(find_target(name), "available", lambda self: None)
        monkeypatch.setattr(find_target(name), "build", built(name))
    return tmp_path


def why_parsed_alone(one: Command) -> str | None:
    return next((why for pattern, why in PARSED_ALONE.items() if re.search(pattern, one.text + " ")), None)


def parsed(one: Command) -> None:
    """Reads the command as it would before it does anything: options, passes, targets, gates. Raises as it would."""
    words = one.words
    place = COMMANDS.get(words[0])
    parser = parser_of(command(place or COMPILE))
    options = vars(parser.parse_args(attached(words[place is not None :], "--launch")))
    if options.get("passes") is not None:
        assert Recipe(steps=parse_calls(options["passes"], "--passes")).passes()
    if options.get("target") is not None:
        assert configured_targets(parse_calls(options["target"], "--target"))
    if options.get("gate"):
        assert parse_gates(options["gate"])


def shorter(one: Command) -> list[str]:
    """The command with trainings of one epoch, short searches, no times, and results that may be replaced."""
    words = [re.sub(r"\bepochs([:=]) *\d+", r"epochs\g<1>1", word) for word in one.words]
    if words[0] in ("search", "auto"):
        words = [*words, "--budget", SEARCHED[0], "--trials", str(SEARCHED[1]), "--jobs", "1", "--force"]
    for before, at in zip(words, range(1, len(words)), strict=False):
        if before == "--target":
            words[at] = re.sub(r"\bpack\b(?!\()", "pack(effort=fast)", words[at])
    compiles = words[0] not in COMMANDS
    times = any(re.search("latency|timed|by=time", word) for word in words)
    return [
        *words,
        *(["--quiet"] if words[0] not in ("completion",) else []),
        *(["--no-latency"] if compiles and not times and "--no-latency" not in words else []),
        *(["--force"] if compiles and not {"--force", "--resume"} & {*words} else []),
    ]


def shorter_script(text: str) -> str:
    """The block of Python with short searches."""
    return re.sub(r'budget="\w+"', f'budget="{SEARCHED[0]}", trials={SEARCHED[1]}', text)


@contextlib.contextmanager
def pixels(one: Command, folder: Path):  # type: ignore[no-untyped-def]
    """Arrays are uint8 for a command that scales pixels, as the page's reader would have them, and float else."""
    made = []
    if "--preprocess" in one.text:
        for path in folder.glob("*.npz"):
            if path.is_symlink():
                with np.load(path) as arrays:
                    kept = {name: arrays[name] for name in arrays.files}
                if "image" in kept:
                    kept["image"] = (255 * kept["image"]).astype(np.uint8)
                source = path.resolve()
                path.unlink()
                np.savez(path, **kept)
                made.append((path, source))
    yield
    for path, source in made:
        path.unlink()
        path.symlink_to(source)


def made(text: str) -> None:
    """Makes what the command reads and nobody has made yet."""
    for needed, made_by in MADE.items():
        if re.search(rf"(?<![\w/]){re.escape(needed)}(?!\w)", text) and not Path(needed).exists():
            assert main(made_by.split("|")) == 0
            if needed == "int8.onnx":
                Path("quantized/model.onnx").rename(needed)


def run(one: Command, folder: Path) -> int:
    with pixels(one, folder):
        if one.output is None:
            return main(shorter(one))
        with open(one.output, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            return main(shorter(one))


def allowed(one: Command) -> tuple[int, ...]:
    """The exit codes that are right here."""
    return (0, 3) if any(re.search(pattern, one.text) for pattern in MAY_FAIL_ITS_GATE) else (0,)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE])
def test_the_commands_of_a_page_run(page: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in commands(page):
        if why_parsed_alone(one) is not None:
            parsed(one)
            continue
        if "--out build" not in one.text and "init" not in one.words[:1]:
            made(one.text)
        capsys.readouterr()
        code = run(one, desk)
        said = capsys.readouterr()
        assert code in allowed(one), f"{one}\n{said.out[-1500:]}{said.err}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_are_understood(page: str) -> None:
    for one in inline_commands(page):
        parsed(one)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE])
def test_the_python_of_a_page_runs(page: str, desk: Path) -> None:
    names: dict[str, object] = {}
    for block in scripts(page):
        code = compile(shorter_script(block), page, "exec")
        if page not in FRAGMENTS:
            exec(code, names)


@pytest.mark.parametrize("page", PAGES)
def test_the_recipes_of_a_page_are_recipes(page: str, tmp_path: Path) -> None:
    for text in recipes_in(page):
        (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
        recipe = load_recipe(tmp_path / "recipe.toml")
        assert recipe.passes()
        assert configured_targets(recipe.targets)
        assert parse_gates(recipe.gates, recipe.metrics) or not recipe.gates


def test_the_pages_have_commands() -> None:
    """A change of form must not empty the tests above."""
    assert len([one for page in PAGES for one in commands(page)]) > 40
    assert len([one for page in PAGES for one in inline_commands(page)]) > 10
    assert next(str(one) for one in commands("README.md")).startswith("README.md: optimize ")


def test_exceptions_are_needed_and_their_tests_there() -> None:
    every = [one for page in PAGES for one in commands(page)]
    for pattern in (*PARSED_ALONE, *MAY_FAIL_ITS_GATE):
        assert any(re.search(pattern, one.text + " ") for one in every), pattern
    for page, test in TESTED_ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")
    assert all(scripts(page) for page in FRAGMENTS)


@pytest.mark.parametrize("word", ["", *COMMANDS])
def test_help_ends_with_examples_that_run(word: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"optimize {word}".strip()
    assert len(EXAMPLES[name]) >= 2
    with pytest.raises(SystemExit):
        main([*([word] if word else []), "--help"])
    shown = capsys.readouterr().out
    assert len(re.findall("^examples?:", shown, re.MULTILINE)) == 1
    for text, what in EXAMPLES[name]:
        assert text in shown
        assert what in shown
        made(text)
        if "completion" in text:
            pytest.importorskip("shtab")
        one = Command("--help", text.removeprefix("optimize "))
        code = run(one, desk)
        assert code in allowed(one), f"{text}\n{capsys.readouterr().err}"


def test_what_a_command_prints_as_json_is_json(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, examples in EXAMPLES.items():
        for text, _ in examples:
            if "--json" in text and "lathe" not in text:
                made(text)
                capsys.readouterr()
                assert main(Command(name, text.removeprefix("optimize ")).words) == 0
                json.loads(capsys.readouterr().out)


def test_the_site_names_a_page_once() -> None:
    pages = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(pages) > 20
    assert len(pages) == len(set(pages))


def test_targets_have_a_row_and_a_section_each_in_one_order() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    table = re.findall(r"^\| `([\w-]+)` \|", page.partition("\n## ")[0], re.M)
    headings = re.findall(r"^## (`.*)$", page, re.M)
    assert set(table) == set(targets())
    assert table == [name for heading in headings for name in re.findall(r"`([\w-]+)`", heading)]


def test_pages_stay_short_enough_to_read() -> None:
    longest = max(
        (ROOT / page for page in PAGES), key=lambda path: path.read_text(encoding="utf-8").count("\n")
    )
    assert longest.read_text(encoding="utf-8").count("\n") < 400, longest
