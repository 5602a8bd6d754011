"""The defence, in reading order: presets, purifier (tiles, gradients), evidence, detector, decisions, classifier."""

__all__: list[str] = []
