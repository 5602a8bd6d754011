"""Filters that refine a fit, and are no fit themselves."""

__all__: list[str] = []
