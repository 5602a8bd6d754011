"""Filters of noisy images, which refine a fit or stand alone, and how strong the noise is."""

__all__: list[str] = []
