"""The engine, in reading order: config, networks (layers, pixels), inputs, losses, problem, state, fit, unroll."""

__all__: list[str] = []
