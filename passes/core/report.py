"""What a pass says of its work: nodes changed, nodes left alone with the reason, numbers, warnings."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Skip:
    """A node that a pass left alone, and why. A reason is a phrase without the node's name: "its weight is
    computed at run time".
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Edit:
    """A node that a pass changed, and how, in a phrase: "61 of 64 zeros"."""

    node: str
    what: str


@dataclass
class PassReport:
    """What a pass did. An empty report means that there was nothing to do."""

    edits: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """What the user should know of the result as a whole, and what to do about it."""
    chosen: dict[str, float] = field(default_factory=dict)
    """By weight, what the option layers= would have to say to give it what it got: of passes that share out a budget."""

    def edit(self, node: str, what: str) -> None:
        self.edits.append(Edit(node, what))

    def skip(self, node: str, reason: str) -> None:
        """Once for all weights of a node that one reason keeps."""
        if not self.skips or self.skips[-1] != Skip(node, reason):
            self.skips.append(Skip(node, reason))
