"""One HTML file of everything in the folder of a run."""

from eval.report.page import write_report

__all__ = ["write_report"]
