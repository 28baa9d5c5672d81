"""Numbers as words, by public edges."""

from collections.abc import Sequence

__all__ = ["word_for"]


def word_for(value: float, edges: Sequence[tuple[float, str]], last: str) -> str:
    """Return the word of the first edge that lies above ``value``; ``last`` if none does.

    >>> word_for(0.4, ((0.2, "low"), (0.6, "middling")), "high")
    'middling'
    """
    return next((word for edge, word in edges if value < edge), last)
