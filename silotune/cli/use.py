"""Commands that use a model on a merchant's own customers: score, similar, segments, centroids."""

import typer

from silotune.cli.centroids import add_centroids
from silotune.cli.score import add_score
from silotune.cli.segments import add_segments
from silotune.cli.similar import add_similar

__all__ = ["add_use"]


def add_use(group: typer.Typer) -> None:
    """Add the commands to ``silotune client``."""
    for add in (add_score, add_similar, add_segments, add_centroids):
        add(group)
