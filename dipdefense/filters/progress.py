"""How far filters are: they call a function with the share of their work that is done, from 0 to 1."""

from collections.abc import Callable

__all__ = ["ShareCallback", "no_callback", "part_of"]

ShareCallback = Callable[[float], None]


def no_callback(share: float) -> None:
    """What filters call by default."""


def part_of(callback: ShareCallback, number: int, count: int) -> ShareCallback:
    """The callback of part `number`, from 0, of `count` equal parts."""
    return lambda share: callback((number + share) / count)
