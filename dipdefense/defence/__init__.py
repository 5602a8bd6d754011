"""The defence: presets, purifier (tiles, gradients), evidence, detector, decisions, pipeline, classifier."""

__all__: list[str] = []
