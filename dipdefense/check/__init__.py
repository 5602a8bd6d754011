"""Checks for what keeps a classifier from being defended."""

__all__: list[str] = []
