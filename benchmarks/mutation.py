"""Mutation testing: how many small faults in the gates, the recipe's parser, the contract and the numerics their tests find.

    python benchmarks/mutation.py [MODULE ...] [--sample N] [--seed S] [--out DIR] [--table]

A module (`gate`, `recipe`, `contract`, or a file of passes/numerics such as `clustering.kmeans`) gets `--sample` of its
mutants, drawn by `--seed` and its name; 0 is all of them. Without names: all of the three, and of each file of the numerics as
many as SAMPLE says. mutants.py lists what is changed, mutation_worker.py says how a mutant is judged. Results lie in DIR, one
file a module, survivors with their lines; --table prints the tables of mutation.md from them and judges nothing.
Exit code 1: less than 85 % are found. Needs Linux.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FLOOR = 0.85
SAMPLE = 12
"""Of each file of the numerics."""
TESTS_OF_A_FILE = 3
DRIVER = {
    "gate": (
        "onnx_lathe.optimizer.gate",
        ("optimizer/test_gate.py", "optimizer/test_gate_judged.py", "property/test_gate.py"),
    ),
    "recipe": (
        "onnx_lathe.optimizer.recipe",
        ("optimizer/test_recipe.py",),
    ),
    "contract": ("onnx_lathe.passes.core.contract", ("contract/test_contract_itself.py",)),
}
THROUGH_OTHERS = {
    "second_order.conjugate": ("passes/test_answers_numerics.py",),
    "sparsity.taylor": ("passes/test_prune_channels.py",),
    "rank.few_rows": ("passes/test_low_rank.py",),
}
"""Files of the numerics that no test imports by their name."""


def numerics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> module and its own test files: those that import it, whose names are most like its own first."""
    folder = ROOT / "passes" / "numerics"
    texts = {
        path.relative_to(ROOT / "tests").as_posix(): path.read_text(encoding="utf-8")
        for room in ("property", "passes")
        for path in sorted((ROOT / "tests" / room).glob("test_*.py"))
    }
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        if path.stem == "__init__":
            continue
        package, _, stem = f"onnx_lathe.passes.numerics.{name}".rpartition(".")
        imported = re.compile(
            rf"from {re.escape(package)}\.{stem} import|from {re.escape(package)} import .*\b{stem}\b"
        )
        tests = [test for test, text in texts.items() if imported.search(text)] or THROUGH_OTHERS.get(
            name, ()
        )
        words = set(stem.split("_"))
        ordered = sorted(
            tests, key=lambda test: (-len(words & set(re.split(r"[_/.]", test))), "numerics" not in test)
        )
        found[name] = (f"{package}.{stem}", tuple(ordered[:TESTS_OF_A_FILE]))
    return found


def subjects() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    return DRIVER | numerics()


def judge(name: str, sample: int, seed: int, out: Path) -> None:
    """Writes the results of one module."""
    module, tests = subjects()[name]
    command = [sys.executable, str(Path(__file__).with_name("mutation_worker.py")), module]
    command += [str(out / f"{name}.json"), "--sample", str(sample), "--seed", str(seed), "--"]
    done = subprocess.run([*command, *(f"tests/{test}" for test in tests)], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: its tests could not be run")


def found_share(results: Sequence[Mapping[str, Any]]) -> float:
    """Of mutants, those that a test fails on or that hang."""
    return sum(one["state"] in ("killed", "hung") for one in results) / len(results) if results else 1.0


def counts(results: Sequence[Mapping[str, Any]]) -> str:
    states = [one["state"] for one in results]
    return " | ".join(str(states.count(state)) for state in ("killed", "hung", "survived", "unreached"))


def table(out: Path) -> tuple[str, float]:
    """The table of all results in the folder, and the least share: of each of the three, and of the numerics together."""
    documents = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))
    }
    groups = {name: [documents[name]] for name in DRIVER if name in documents}
    others = [document for name, document in documents.items() if name not in DRIVER]
    if others:
        groups["numerics"] = others
    lines = [
        "| of | mutants | judged | killed | hung | survived | unreached | found |",
        "|---|" + "---:|" * 7,
    ]
    least = 1.0
    for name, members in groups.items():
        results = [one for member in members for one in member["results"]]
        share = found_share(results)
        least = min(least, share)
        total = sum(member["mutants"] for member in members)
        lines.append(f"| {name} | {total} | {len(results)} | {counts(results)} | {share:.1%} |")
    return "\n".join(lines), least


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MODULE")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    known = subjects()
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(known)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in () if arguments.table else arguments.names or known:
        sample = arguments.sample if arguments.sample is not None else 0 if name in DRIVER else SAMPLE
        judge(name, sample, arguments.seed, arguments.out)
    text, least = table(arguments.out)
    print(text)
    if least < FLOOR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
