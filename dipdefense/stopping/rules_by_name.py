"""The stopping rules by name."""

from dipdefense.stopping.held_out import SubImage, Validation
from dipdefense.stopping.noise_level import Discrepancy, Sure
from dipdefense.stopping.residual import BlindDiscrepancy, DIPDefend
from dipdefense.stopping.rule import Fixed, StoppingRule
from dipdefense.stopping.variance import ExponentialMovingVariance, WindowedMovingVariance

__all__ = ["STOPPING_RULES"]

STOPPING_RULES: dict[str, type[StoppingRule]] = {
    "fixed": Fixed,
    "wmv": WindowedMovingVariance,
    "emv": ExponentialMovingVariance,
    "dipdefend": DIPDefend,
    "discrepancy": Discrepancy,
    "sure": Sure,
    "validation": Validation,
    "sub_image": SubImage,
    "blind_discrepancy": BlindDiscrepancy,
}
