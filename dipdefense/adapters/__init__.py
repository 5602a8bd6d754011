"""One module for each foreign library; each needs its own extra, so import the module that you use."""

__all__: list[str] = []
