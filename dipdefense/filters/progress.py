"""How far filters are: they call a function `watch` with the share of their work that is done, from 0 to 1."""

from collections.abc import Callable

__all__ = ["Watch", "part_of", "unwatched"]

Watch = Callable[[float], None]


def unwatched(share: float) -> None:
    """What filters call where nobody watches."""


def part_of(watch: Watch, number: int, count: int) -> Watch:
    """The watch of part `number` of `count` equal parts, from 0."""
    return lambda share: watch((number + share) / count)
