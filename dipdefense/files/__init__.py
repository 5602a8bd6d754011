"""Image files: reading, writing, and purifying many of them."""

__all__: list[str] = []
