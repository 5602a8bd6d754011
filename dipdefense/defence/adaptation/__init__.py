"""Adaptation: a classifier learns, without labels, to read reconstructions."""

__all__: list[str] = []
