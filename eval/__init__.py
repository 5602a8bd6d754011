"""Evaluate classifiers and their defences. Write `from eval import NAME`: a bare `import eval` hides a builtin."""

from importlib.util import find_spec

for _needed in ("pandas", "scipy", "skimage", "sklearn", "torchmetrics", "matplotlib"):
    if find_spec(_needed) is None:
        raise ImportError(f"eval needs {_needed}: python -m pip install 'dipdefense[eval]'")

from eval.restoration.denoising import benchmark_denoising  # noqa: E402 - after the check that says what to install
from eval.robustness.config import RunConfig  # noqa: E402
from eval.robustness.evaluate import evaluate_robustness  # noqa: E402

__all__ = ["RunConfig", "benchmark_denoising", "evaluate_robustness"]
