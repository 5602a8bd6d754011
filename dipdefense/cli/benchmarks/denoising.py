"""The commands `dipdefense benchmark denoising, impedance, curve, ablation`."""

from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar
from dipdefense.files.reading import read_image

__all__ = ["denoising_benchmarks"]

denoising_benchmarks = typer.Typer()

Sigma = Annotated[
    str,
    typer.Option(
        help="Standard deviation of the Gaussian noise: a number of 8-bit grey levels such as 25, or a fraction of "
        "the range such as 25/255, which is the same."
    ),
]
Photo = Annotated[Path, typer.Argument(metavar="IMAGE", help="Clean image file.")]
Resize = Annotated[int | None, typer.Option(help="Short side of the images, in pixels, by area averages.")]
Crop = Annotated[int | None, typer.Option(help="Side of the central square that is used, in pixels.")]
Clip = Annotated[
    bool,
    typer.Option("--clip/--no-clip", help="Clip noisy images to [0, 1]; not by default, as in the literature."),
]


@denoising_benchmarks.command(
    epilog="Example: dipdefense benchmark denoising --data photos --sigma 25 --methods median,dip"
)
def denoising(
    data: Annotated[Path | None, typer.Option(help="Folder of clean images, to which noise is added.")] = None,
    noisy: Annotated[
        Path | None, typer.Option(help="Folder of real noisy images: X_real (PolyU), X_NOISY_SRGB_N (SIDD), any name.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of their references: X_mean, X_GT_SRGB_N, or the same names.")
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Standard deviation of the Gaussian noise that is added: a number of 8-bit grey levels such as 25, "
            "or a fraction of the range such as 25/255. With other noise it is the level that the filters are given."
        ),
    ] = None,
    noise: Annotated[
        str, typer.Option(help="Noise that is added: gaussian, impulse, shot (Poisson), speckle, camera.")
    ] = "gaussian",
    level: Annotated[
        float | None,
        typer.Option(
            help="Strength of other noise than Gaussian: the share of values hit (impulse), photons at white (shot, "
            "camera), standard deviation of the factor (speckle)."
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: noisy, gaussian, median, bilateral, non_local_means, wavelet, total_variation, "
            "jpeg, bm3d, cbm3d (with :estimated they estimate sigma), dip, dip_ema, dip_average, "
            "dip_blind_stop, dip_oracle, cosine, denoise, denoise_average, denoise_camera, denoise_impulse. bm3d and "
            "cbm3d need an extra, free for non-commercial use."
        ),
    ] = (
        "noisy,gaussian,median,bilateral,non_local_means,wavelet,total_variation,jpeg,dip,dip_ema,dip_average,"
        "dip_blind_stop,dip_oracle,cosine,denoise"
    ),
    resize: Resize = None,
    crop: Crop = None,
    clip: Clip = False,
    seeds: Annotated[int, typer.Option(help="Noise and fits are repeated with the seeds 0, 1, ...")] = 1,
    runs: Annotated[int, typer.Option(help="Fits that dip_average averages.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Images fitted together.")] = 16,
    baseline: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "dip_ema",
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: options.RunFolder = Path("runs/denoising"),
) -> None:
    """Compare the deep image prior and classical denoisers on identical noise; PSNR and SSIM, clipped to [0, 1]."""
    from eval.restoration.denoising import SMALL, benchmark_denoising

    where = options.device_named(device)
    references, shots = _photos(data, noisy, reference, resize, crop)
    with progress_bar("records") as progress:
        table = benchmark_denoising(
            references,
            options.names(methods),
            options.fit_config(config) or SMALL,
            sigma=None if sigma is None else options.noise_level(sigma),
            noise=noise,
            level=level,
            noisy=shots,
            clip=clip,
            seeds=seeds,
            runs=runs,
            batch_size=batch_size,
            baseline=baseline,
            device=where,
            out=out,
            progress=progress,
        )
    print_frame(table)
    note(f"estimates are clipped to [0, 1] before they are scored; tables, records, contact sheet: {out}")


def _photos(
    data: Path | None, noisy: Path | None, reference: Path | None, resize: int | None, crop: int | None
) -> tuple[list[tuple[str, Tensor]], list[Tensor] | None]:
    """(name, clean image) of each, and the real noisy images; None if noise is to be added."""
    from eval.photographs import read_originals
    from eval.restoration.noisy_pairs import read_pairs

    if data is not None and noisy is None and reference is None:
        return read_originals(data, resize=resize, crop=crop), None
    if data is not None or noisy is None or reference is None:
        raise ValueError("data must be given, or else noisy and reference together: --data, or --noisy --reference")
    if resize is not None:
        raise ValueError(
            f"resize must not be given with noisy images, got {resize}: averaging would remove their noise"
        )
    pairs = read_pairs(noisy, reference, crop=crop)
    return [(name, clean) for name, _, clean in pairs], [shot for _, shot, _ in pairs]


@denoising_benchmarks.command(epilog="Example: dipdefense benchmark impedance photo.png")
def impedance(
    image: Photo,
    sigma: Sigma = "25",
    resize: Resize = None,
    crop: Crop = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder for impedance.csv and impedance.png.")] = Path("runs/impedance"),
) -> None:
    """Plot the loss along the fits to an image, to the image with noise, to its pixels shuffled, and to noise."""
    from eval.fits.impedance import arrivals, noise_impedance, save_impedance
    from eval.photographs import read_photo
    from eval.restoration.denoising import SMALL

    with progress_bar("share") as progress:
        curves = noise_impedance(
            read_photo(image, resize, crop),
            options.fit_config(config) or SMALL,
            sigma=options.noise_level(sigma),
            seed=seed,
            device=options.device_named(device),
            progress=progress,
        )
    save_impedance(out, curves)
    print_frame(arrivals(curves))
    note(f"curves: {out}")


@denoising_benchmarks.command(epilog="Example: dipdefense benchmark curve photo.png --sigma 25")
def curve(
    image: Photo,
    sigma: Sigma = "25",
    noisy: Annotated[
        Path | None, typer.Option(help="Real noisy image file, in place of noise of sigma; whole images only.")
    ] = None,
    every: Annotated[int, typer.Option(help="Iterations between two rows.")] = 10,
    resize: Resize = None,
    crop: Crop = None,
    clip: Clip = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder for curve.csv and curve.png.")] = Path("runs/curve"),
) -> None:
    """Plot PSNR and SSIM along a fit, of output and moving average, against the clean and the noisy image."""
    from eval.fits.training_curve import save_training_curve, training_curve
    from eval.noise import gaussian, generator_of
    from eval.photographs import read_photo
    from eval.restoration.denoising import SMALL

    reference, level = read_photo(image, resize, crop), options.noise_level(sigma)
    if noisy is not None:
        if resize is not None or crop is not None:
            raise ValueError("resize and crop must not be given with a noisy image: cut both files first")
        shot = read_image(noisy)
    else:
        shot = gaussian(reference[None], level, generator=generator_of(seed, image.name, "denoising"), clip=clip)[0]
    with progress_bar("share") as progress:
        table = training_curve(
            reference,
            shot,
            options.fit_config(config) or SMALL,
            every=every,
            seed=seed,
            device=options.device_named(device),
            progress=progress,
        )
    save_training_curve(out, table)
    print_frame(table)
    note(f"curve: {out}")


@denoising_benchmarks.command(epilog="Example: dipdefense benchmark ablation --data photos --n 2")
def ablation(
    data: Annotated[Path, typer.Option(help="Folder of colour images.")],
    mnist: Annotated[Path | None, typer.Option(help="Folder of MNIST's test set; no digits if left out.")] = None,
    resize: options.ResizeTo = 256,
    crop: options.CropTo = 128,
    n: options.Count = 2,
    digits: Annotated[int, typer.Option(help="Number of digits, the first of MNIST's test set.")] = 16,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    out: options.RunFolder = Path("runs/ablation"),
) -> None:
    """Measure what each part of a denoising fit contributes, and whether one configuration suits every task."""
    from eval.datasets import load_dataset
    from eval.photographs import read_photos
    from eval.restoration.ablation import benchmark_ablation

    where = options.device_named(device)
    photos = [image for _, image in read_photos(data, resize=resize, crop=crop, n=n, seed=seed)]
    if digits < 1:
        raise ValueError(f"digits must be at least 1, got {digits}: leave --mnist out for none")
    digit_images = None if mnist is None else load_dataset("mnist", mnist).batch(range(digits))
    with progress_bar("rows") as progress:
        table = benchmark_ablation(photos, digit_images, seed=seed, device=where, out=out, progress=progress)
    print_frame(table)
    note(f"table and records: {out}")
