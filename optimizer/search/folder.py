"""What a search keeps in its folder, and when it may erase what an earlier one left there."""

import shutil
from contextlib import suppress
from pathlib import Path

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.claim import Claim
from onnx_lathe.optimizer.search.request import SearchRequest

RECORD, RECIPE, STUDY, BEST = "search.json", "recipe.toml", "study.journal", "best"


def check_out(request: SearchRequest, claim: Claim) -> bool:
    """Whether the folder holds an earlier search. If it is there, it is this search's alone from here on."""
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"{request.out}: is a file; give another --out")
    if request.out.is_dir():
        with suppress(OSError):  # which `begin` tells
            claim.take()
    there = [name for name in (RECORD, STUDY) if (request.out / name).exists()]
    if there and not request.resume and not request.force:
        raise UsageError(
            f"{request.out}: holds a search ({', '.join(there)}); --resume goes on with it, --force erases it, or give another --out"
        )
    if request.model.resolve().parent == request.out.resolve():
        raise UsageError(
            f"{request.model}: lies in the output folder {request.out}, where results go; give another --out"
        )
    return bool(there)


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def begin(request: SearchRequest, earlier: bool, claim: Claim) -> None:
    """Erases an earlier search, unless this one goes on with it: then its files stay until there are new ones."""
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        looked = claim.held
        claim.take()
        if not looked and (request.out / STUDY).exists():
            raise UsageError(f"{request.out}: another search began there meanwhile; give another --out")
        if request.resume:
            return
        for name in (RECORD, RECIPE, STUDY, f"{STUDY}.lock"):
            (request.out / name).unlink(missing_ok=True)
        if earlier:
            _remove(request.out / BEST)
    except OSError as error:
        raise UsageError(
            f"{request.out}: cannot write there ({error.strerror}); give another --out"
        ) from error


def erase_winner(out: Path) -> None:
    """What a search that --resume went on with has named, and this one does not."""
    (out / RECIPE).unlink(missing_ok=True)
    _remove(out / BEST)
