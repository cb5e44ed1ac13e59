"""Which nets a study trains: label subsets and initialisations, apart.

What a method is worth differs from label subset to label subset, and for one subset from net to
net. The first is what a conclusion must survive, so it is the unit of every interval; more nets of
one subset say how much of the spread is luck of the start.
"""

from dataclasses import dataclass
from typing import Any

MOST_SUBSETS = 100  # as finetune.seeds allows, so that no two pairs share a seed


@dataclass(frozen=True)
class SeedPair:
    """One net: the label subset it learns from, and which of its initialisations it is."""

    subset: int
    initialisation: int = 0

    @property
    def seed(self) -> int:
        """Of its first weights, the order of its images and their views."""
        return self.subset + MOST_SUBSETS * self.initialisation

    @property
    def folder(self) -> str:
        """Of its product; the first net of a subset is where later stages look."""
        more = f"-initialisation-{self.initialisation}" if self.initialisation else ""
        return f"seed-{self.subset}{more}"

    @property
    def facts(self) -> dict[str, Any]:
        """For its row of the results."""
        return {"seed": self.subset, "initialisation": self.initialisation}


def seed_pairs(subsets: int, initialisations: int) -> list[SeedPair]:
    """Every net of a method; all first nets come before any second one."""
    return [
        SeedPair(subset, initialisation)
        for initialisation in range(initialisations)
        for subset in range(subsets)
    ]
