"""Benchmarks of denoising and restoration: degraded inputs, other methods, tables and pictures."""

__all__: list[str] = []
