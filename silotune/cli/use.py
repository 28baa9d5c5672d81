"""Commands that use a model on a merchant's own customers: score, segments, centroids."""

import typer

from silotune.cli.centroids import add_centroids
from silotune.cli.score import add_score
from silotune.cli.segments import add_segments

__all__ = ["add_use"]


def add_use(group: typer.Typer) -> None:
    """Add the commands to ``silotune client``."""
    add_score(group)
    add_segments(group)
    add_centroids(group)
