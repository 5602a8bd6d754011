"""What public entries expect of plain numbers."""

__all__ = ["check_integer"]


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
