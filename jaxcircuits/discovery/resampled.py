"""What replicates of circuits and of scores share: the result of all prompts, which they are as a circuit."""

from typing import Any

from ..graph import Graph
from ..types import EdgeBools, EdgeScores


class Resampled:
    """Has `full`, the result of all prompts, beside what resampled ones give."""

    full: Any

    @property
    def graph(self) -> Graph:
        return self.full.graph

    @property
    def mask(self) -> EdgeBools:
        """Of all prompts."""
        return self.full.mask

    @property
    def scores(self) -> EdgeScores:
        """Of all prompts."""
        return self.full.scores
