"""The engine in reading order: config, networks, layers, inputs, losses, problem, step, batch, workers, checkpoint,
fit, unroll.
"""

__all__: list[str] = []
