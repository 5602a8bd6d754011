"""Benchmarks of denoising and restoration: degraded inputs, rivals, tables and pictures."""

__all__: list[str] = []
