"""The settings of a certification run."""

from collections.abc import Sequence
from dataclasses import dataclass

from dipdefense.arguments import check_integer, check_known
from dipdefense.defence.certify import SamplingPlan
from dipdefense.defence.smoothing import DIP
from eval.certification.purifiers_by_name import PURIFIERS
from eval.robustness.config import check_names

__all__ = ["CertificationConfig"]


@dataclass(frozen=True, kw_only=True)
class CertificationConfig:
    """Settings of a run.

    Raises:
        TypeError: purifiers that are no sequence of names.
        ValueError: an unknown purifier, a number out of its range.
    """

    plan: SamplingPlan
    purifiers: Sequence[str] = (DIP,)  # of PURIFIERS
    mirror: bool = True  # False: `dip` classifies no mirrored view, for classes that change in the mirror
    n: int = 100  # images: the first n of a seeded permutation
    seed: int = 0  # of the permutation and the noise
    block: int = 256  # draws of an image that are purified together

    def __post_init__(self) -> None:
        check_names("purifiers", self.purifiers)
        for name in self.purifiers:
            check_known("purifiers", name, PURIFIERS, several=True)
        for name, least in (("n", 1), ("seed", 0), ("block", 1)):
            check_integer(name, getattr(self, name), least)
