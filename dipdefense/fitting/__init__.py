"""The engine in reading order: config, networks, layers, inputs, starts, losses, problem, step, batch, workers,
checkpoint, fit, unroll, learn_start.
"""

__all__: list[str] = []
