"""The settings of each restoration task: small ones for a CPU, and the published ones.

`SMALL` holds the defaults of the restoration tasks, `PUBLISHED` the settings of the authors of the deep image prior,
`PIXELS` those of the learning-free rival, which needs `tv > 0`.
"""

from dataclasses import replace

from dipdefense.fitting.config import FitConfig

__all__ = ["PIXELS", "PUBLISHED", "PUBLISHED_INPAINTING", "SMALL", "SMALL_HOLES", "TILE", "published_super_resolution"]

# For images of about 128 pixels a side, where tasks without noise gain little after 600 iterations. Nearest upsampling
# needs half the iterations of bilinear.
_small = FitConfig(
    architecture_options={"channels": [16, 32, 64, 64], "skip_channels": 4, "upsampling": "nearest"},
    input_channels=16,
    iterations=600,
    ema=0.95,
    memory_gb=4.0,
)
SMALL_HOLES = _small  # of `inpaint` where a hole is larger than a tile: they continue lines into it
TILE = 64  # side in pixels of the tiles that larger images are cut into
_tiles = replace(_small, iterations=300, lr=0.02, jitter=0.01)
SMALL: dict[str, FitConfig] = {
    "denoise": replace(  # for tiles of TILE, and for the filters that follow; docs/denoising.md
        _tiles, iterations=400, stopping="blind_discrepancy"
    ),
    "denoise_camera": replace(_tiles, iterations=200),
    "inpaint": _tiles,
    "super_resolve": _tiles,
    "remove_jpeg_artifacts": _tiles,
    "flash_no_flash": replace(_small, iterations=200, jitter=0.0),  # z holds the edges, so few iterations suffice
    "invert_features": replace(_small, lr=5e-3),
    "maximise_activation": _small,
}

_hourglass = FitConfig(
    architecture_options={"channels": [128] * 5, "skip_channels": 4},
    iterations=3000,
    ema=0.99,
    memory_gb=24.0,  # a 512x512 image takes several GiB: meant for a GPU
)
_pyramid = [16, 32, 64, 128, 128, 128]

# Source: the supplementary material of Ulyanov et al. (2018) and the notebooks of the authors' code.
# Differs: the moving average of the iterates is returned wherever z is jittered; the authors return the output of the
# last network without jitter. `region` has a 1x1 convolution at every decoder scale, and `flash_no_flash` has one
# upsampling for all scales (that of the authors is nearest at the two finest).
PUBLISHED_INPAINTING: dict[str, FitConfig] = {
    "text": replace(  # kate
        _hourglass,
        architecture_options={"channels": [128] * 5, "skip_channels": 128, "upsampling": "nearest"},
        iterations=6000,
        jitter=0.03,
    ),
    "holes": replace(  # vase
        _hourglass,
        architecture_options={"channels": [128] * 5, "skip_channels": 0, "upsampling": "nearest"},
        input="meshgrid",
        input_channels=2,
        iterations=5000,
        jitter=0.03,
    ),
    "region": replace(  # library
        _hourglass,
        architecture_options={"channels": _pyramid, "skip_channels": 0, "kernel_down": 5, "upsampling": "nearest"},
        input_channels=1,
        jitter=0.0,
        ema=0.0,
    ),
    "half": replace(_hourglass, iterations=11000, lr=1e-3, jitter=0.03),  # barbara, 50 % of the pixels missing
    "sparse": replace(  # kate, 98 % missing
        _hourglass,
        architecture_options={"channels": _pyramid[:5], "skip_channels": 0, "downsampling": "average"},
        iterations=1000,
        jitter=0.0,
        ema=0.0,
    ),
}


def published_super_resolution(factor: int) -> FitConfig:
    """The published settings for x4, also used for smaller factors, or for x8."""
    if factor <= 4:
        return replace(_hourglass, iterations=2000, jitter=0.03)
    return replace(_hourglass, iterations=4000, jitter=0.05)


PUBLISHED: dict[str, FitConfig] = {
    "denoise": _hourglass,
    "inpaint": PUBLISHED_INPAINTING["text"],
    "super_resolve": published_super_resolution(4),
    "remove_jpeg_artifacts": replace(  # snail
        _hourglass,
        architecture_options={"channels": [8, 16, 32, 64, 128], "skip_channels": [0, 0, 0, 4, 4]},
        input_channels=3,
        iterations=2400,
    ),
    "flash_no_flash": replace(_hourglass, input_channels=3, iterations=600, lr=0.1, jitter=0.0, ema=0.0),
    "invert_features": replace(
        _hourglass,
        architecture_options={
            "channels": _pyramid,
            "skip_channels": 4,
            "kernel_down": [7, 7, 5, 5, 3, 3],
            "kernel_up": [7, 7, 5, 5, 3, 3],
            "upsampling": "nearest",
            "downsampling": "average",
            "padding": "zero",
        },
        iterations=3100,
        lr=1e-3,
        jitter=0.0,
        ema=0.0,
    ),
    "maximise_activation": replace(
        _hourglass,
        architecture_options={
            "channels": _pyramid,
            "skip_channels": [0, 4, 4, 4, 4, 4],
            "kernel_down": [5, 3, 5, 5, 3, 5],
            "kernel_up": [5, 3, 5, 3, 5, 3],
            "downsampling": "average",
        },
        iterations=3100,
        lr=1e-3,
        jitter=0.03,
    ),
}

# The moving average removes the oscillations that Adam's constant step size leaves at edges.
PIXELS = FitConfig(architecture="pixels", input_channels=1, iterations=800, jitter=0.0, ema=0.9, memory_gb=4.0)
