"""Environments into which Lathe is installed in one way or another, beside this one's other packages."""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.support.models import ROOT

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@dataclass(frozen=True)
class Installation:
    """A virtual environment of its own, which has what `install` put there and this environment's
    libraries, but not its Lathe.
    """

    folder: Path

    @property
    def python(self) -> Path:
        scripts = "Scripts" if os.name == "nt" else "bin"
        return self.folder / scripts / Path(sys.executable).name

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))

    def install(self, wheel: Path) -> None:
        install(self.packages, wheel)

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`python -I ARGUMENTS`, in the environment's folder."""
        done = subprocess.run(
            [str(self.python), "-I", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=CLEAN | {"COLUMNS": "200"},
            timeout=120,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done


def made(folder: Path) -> Installation:
    """An installation in the folder, without Lathe."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    installation = Installation(folder)
    # files named in a .pth file of a folder that a .pth file names are not read: nor is an editable Lathe's
    (installation.packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installation


def built(hook: str, out: Path, source: Path = ROOT) -> Path:
    """What hatchling's hook (build_wheel, build_sdist, build_editable) makes of the source, in `out`."""
    code = f"from hatchling import build; print(build.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


def install(folder: Path, what: Path) -> None:
    """Installs a wheel, or a folder that hatchling builds, into a folder; by pip, without the network."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder), str(what)]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN, cwd=folder)
    assert done.returncode == 0, done.stderr
