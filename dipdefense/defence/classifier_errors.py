"""The errors of a model that gets images of a size, batch size or dtype that it was not built for."""

__all__ = ["REFUSALS", "first_line"]

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def first_line(error: BaseException | None) -> str:
    """Kind and first line of an error, without a full stop, since a sentence goes on behind it."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].removesuffix('.')}"
