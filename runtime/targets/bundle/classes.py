"""Names of classes as an option of a target: one text, with a mark between."""

from collections.abc import Sequence

MARK = "|"
HELP = "names of the classes in their order, with | between, for the description and the examples; the data's own if it has them"


def joined(names: Sequence[str]) -> str:
    """A name that holds the mark gets another that looks alike."""
    return MARK.join(name.replace(MARK, "\u00a6") for name in names)


def split(text: str) -> list[str]:
    return text.split(MARK) if text else []
