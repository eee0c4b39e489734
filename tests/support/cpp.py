"""A C++ compiler and ncnn's headers, where this machine has them."""

import os
import shutil
import subprocess
from pathlib import Path

VARIABLE = "NCNN_INCLUDE"
USUAL = ("/usr/include/ncnn", "/usr/local/include/ncnn", "/opt/homebrew/include/ncnn")


def headers() -> Path | None:
    """The folder with ncnn's net.h: as the variable NCNN_INCLUDE says, as pkg-config does, or a usual one."""
    given = os.environ.get(VARIABLE)
    for folder in (given, *_by_pkg_config(), *USUAL):
        if folder and (Path(folder) / "net.h").is_file() and (Path(folder) / "platform.h").is_file():
            return Path(folder)
    return None


def missing() -> str:
    """Why nothing can be compiled; empty if it can."""
    if compiler() is None:
        return "there is no C++ compiler"
    return "" if headers() else f"ncnn's headers are not installed ({VARIABLE} may name their folder)"


def compiler() -> str | None:
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def compile_errors(source: Path, standard: str = "c++11") -> str:
    """What the compiler says of a source, warnings included; nothing is linked."""
    command = [
        compiler() or "",
        f"-std={standard}",
        "-Wall",
        "-Wextra",
        "-fsyntax-only",
        f"-I{headers()}",
        str(source),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stderr


def _by_pkg_config() -> list[str]:
    if shutil.which("pkg-config") is None:
        return []
    asked = ["pkg-config", "--cflags-only-I", "ncnn"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    return [word.removeprefix("-I") for word in found.stdout.split() if word.startswith("-I")]


LITERT_VARIABLE = "LITERT_INCLUDE"


def litert_headers() -> Path | None:
    """The folder with litert/ and tflite/ of LiteRT's sources (or absl/ too), as the variable LITERT_INCLUDE says."""
    given = os.environ.get(LITERT_VARIABLE)
    wanted = ("litert/cc/litert_compiled_model.h", "tflite/c/c_api.h", "absl/types/span.h")
    return Path(given) if given and all((Path(given) / name).is_file() for name in wanted) else None


def missing_litert() -> str:
    """Why nothing can be compiled against LiteRT; empty if it can."""
    if compiler() is None:
        return "there is no C++ compiler"
    return (
        ""
        if litert_headers()
        else f"LiteRT's headers are not at hand ({LITERT_VARIABLE} may name their folder)"
    )


def litert_compile_errors(source: Path, standard: str) -> str:
    """What the compiler says of a source, warnings included; nothing is linked. LiteRT's own headers need Clang, or
    GCC's -fpermissive.
    """
    command = [compiler() or "", f"-std={standard}", "-fpermissive", "-Wall", "-Wextra", "-fsyntax-only"]
    command += ["-isystem", str(litert_headers()), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if str(source) in line or "error" in line)
