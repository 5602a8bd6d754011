"""Evaluate classifiers and their defences. Write `from eval import NAME`: a bare `import eval` hides a builtin."""

from eval.robustness import RunConfig, evaluate_robustness

__all__ = ["RunConfig", "evaluate_robustness"]
