"""Experiments on the fit itself: speed, stopping rules, curves along a fit, its gradient."""

__all__: list[str] = []
