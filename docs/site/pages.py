"""Hooks of MkDocs: files of the repository as pages of the site, and links that work on both.

A link is written as the repository has it (`../benchmarks/int8.md`). In the site it leads to the page of that
file, or, if the file has none, to the repository. One that leads nowhere stays as it is, and `mkdocs build
--strict` names it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?=[)#])")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def pages() -> dict[str, str]:
    """File of the repository outside docs/ -> page of the site."""
    single = {f"{name}.md": f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}
    benchmarks = {f"benchmarks/{path.name}": path.name for path in (ROOT / "benchmarks").glob("*.md")}
    models = {path.relative_to(ROOT).as_posix(): path.parent.name for path in ROOT.glob("models/*/README.md")}
    return (
        {"README.md": "index.md"}
        | single
        | {file: f"benchmarks/{name.replace('README', 'index')}" for file, name in benchmarks.items()}
        | {file: f"models/{name}.md" for file, name in models.items()}
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file, page in pages().items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, **unused: Any) -> str:
    """Rewrites links of a page, but not what looks like one in a block of code."""
    here = page.file.src_uri
    file = next((file for file, made in pages().items() if made == here), f"docs/{here}")
    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(lambda found: site_link(found["path"], file, here, config), p) for p in parts[::2]]
    return "".join(parts)


def site_link(link: str, file: str, page: str, config: MkDocsConfig) -> str:
    """Where `link` in `file` of the repository leads from `page` of the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
    if not (ROOT / target).exists():
        return link
    made = pages().get(target) or (target[5:] if target.startswith("docs/") else None)
    if made is not None and (ROOT / target).is_file():
        return posixpath.relpath(made, posixpath.dirname(page) or ".")
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{str(config.repo_url).rstrip('/')}/{kind}/main/{target}"
