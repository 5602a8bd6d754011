"""What the restoration tasks share: every task is the one fit, with another operator, input or loss.

    min_theta  loss( A(f_theta(z)), observed ) + tv * total_variation( f_theta(z) )

Their functions take the same keywords. `config`: settings of the fit, with any architecture and stopping rule; None for
the small ones of `presets.SMALL`, made for a CPU; `presets.PUBLISHED` holds the published ones. `tile`: side in pixels
of the tiles that larger images are cut into, which overlap by a quarter and are fitted as images of their own; None for
`presets.TILE`, but no tiles with a config. `refine`: whether the filters of `cosine_filters` work on the fit; None:
yes, but not with a config. `seed`: as in `fit`. `tv`: weight of the total variation in the loss; with `presets.PIXELS`
as config it is the only prior, which is the learning-free rival. `callback`, `checkpoint`: as in `fit`, whose images
are the tiles. `filter_callback`: gets the share of the filters that is done, from 0 to 1, once the fit is. Images of a
batch do not affect each other.

Source: Ulyanov, Vedaldi, Lempitsky (2018), "Deep image prior", sections 3.1 to 3.6.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import Progress, fit
from dipdefense.restoration.presets import SMALL, TILE
from dipdefense.restoration.total_variation import weighted_total_variation
from dipdefense.tiles import cut, join

__all__ = ["Callback", "PriorFit", "tile_and_refine"]

Callback = Callable[[Progress], None]


def tile_and_refine(config: FitConfig | None, tile: int | None, refine: bool | None) -> tuple[int | None, bool]:
    """The side of the tiles (None: no tiles), and whether to refine, where the caller left them open.

    Raises:
        ValueError: a tile that is not an integer of at least 1.
    """
    check_integer("tile", tile, 1, none=True)
    usual = config is None
    return TILE if tile is None and usual else tile, usual if refine is None else refine


@dataclass(frozen=True, kw_only=True)
class PriorFit:
    """The keywords of a task that its fit needs."""

    task: str  # in `presets.SMALL`
    config: FitConfig | None
    seed: int | None
    tv: float
    callback: Callback | None
    checkpoint: CheckpointLike | None

    def __call__(self, observed: Tensor, **problem: Any) -> Tensor:
        """The result, clipped to [0, 1], which only the architecture `pixels` can leave. `problem`: as in `fit`."""
        result = fit(
            observed,
            self.config or SMALL[self.task],
            seed=self.seed,
            prior=weighted_total_variation(self.tv),
            callback=self.callback,
            checkpoint=self.checkpoint,
            **problem,
        )
        return result.reconstruction.clamp(0, 1)

    def part(self, number: int, count: int) -> "PriorFit":
        """Fit `number` of `count`, from 0, of one call: `Progress.share` counts them all; each has its own checkpoint.

        Of several fits the checkpoints are at the path with `.1`, `.2`, ... behind it.
        """

        def report(state: Progress) -> None:
            if self.callback is not None:
                self.callback(replace(state, share=(number + state.share) / count))

        own = self.checkpoint
        if own is not None and count > 1:
            own = Checkpoint.at(own).numbered(number + 1)
        return replace(self, callback=report, checkpoint=own)

    def in_tiles(
        self,
        observed: Tensor,
        side: int | None,
        *others: Tensor,
        problem: Callable[..., dict[str, Any]] = lambda *pieces: {},
        factor: int = 1,
    ) -> Tensor:
        """The result of fits to overlapping tiles, joined by a ramp over the overlap.

        Args:
            observed: (B, C, H, W).
            side: of the tiles, in pixels of `observed`; None, or one that no image exceeds: no tiles.
            others: (B, 1 or C, H, W), cut in the same way.
            problem: from the tiles of `observed` and of the others to the keywords of `fit`.
            factor: how much larger the result is than what is observed.

        Returns:
            (B, C, factor H, factor W).
        """
        H, W = observed.shape[2:]
        if side is None or max(H, W) <= side:
            return self(observed, **problem(observed, *others))
        pieces = [cut(each, side, side // 4) for each in (observed, *others)]
        return join(self(pieces[0], **problem(*pieces)), (H, W), side, side // 4, factor)
