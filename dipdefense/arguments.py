"""What public entries expect of plain numbers."""

import math
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

__all__ = ["check_finite", "check_integer", "check_known", "check_positive", "did_you_mean"]


def check_integer(name: str, value: object, least: int, *, none: bool = False) -> None:
    """Raise unless a value is an integer (no bool) of at least `least`, or, where `none` allows it, None.

    Raises:
        ValueError: it is not; the message begins with `name`.
    """
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "None or an integer" if none else "an integer"
        raise ValueError(f"{name} must be {kind} of at least {least}, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """Raise unless a value is a finite number.

    Raises:
        ValueError: it is not; the message begins with `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_positive(name: str, value: float | None, most: float = math.inf) -> None:
    """Raise unless a value is a finite number in (0, most].

    Raises:
        ValueError: it is not; the message begins with `name`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is None or not number or not 0 < value <= most:
        wanted = "be positive and finite" if math.isinf(most) else f"lie in (0, {most}]"
        raise ValueError(f"{name} must {wanted}, got {value!r}")


def check_known(name: str, value: Any, known: Collection[str], *, several: bool = False) -> None:
    """Raise unless the value is one of the known names; `several`: the argument holds more than one name."""
    if value not in known:
        rule = "be among" if several else "be one of"
        raise ValueError(f"{name} must {rule} {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: `; did you mean NAME?`, or nothing if no name is near."""
    near = get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
