"""Robustness: the evaluation, the ladder of adaptive attacks, the comparison of defences, and their tables."""

__all__: list[str] = []
