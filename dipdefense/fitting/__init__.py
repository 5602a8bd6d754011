"""The engine, in reading order: config, networks (layers, pixels), inputs, losses, problem, step,
state, workers, fit, unroll.
"""

__all__: list[str] = []
