"""Restoration by a deep image prior: tasks, their presets, operators, total variation, feature inversion."""

__all__: list[str] = []
