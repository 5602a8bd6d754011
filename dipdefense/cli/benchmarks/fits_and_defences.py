"""The commands `dipdefense benchmark speed, iterations, stopping, defence, gradients`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar
from dipdefense.defence.classifier import DefendedClassifier
from dipdefense.defence.presets import defence_for
from dipdefense.defence.purifier import Purifier
from dipdefense.fitting.config import FitConfig
from dipdefense.stopping import STOPPING_RULES

__all__ = ["benchmark"]

COMPARED = (  # columns that are printed of a comparison
    *("defence", "strength", "attack", "eps", "n", "accuracy", "ci_low", "ci_high"),
    *("psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended", "seconds_per_image"),
)

TRAINING = options.Subject(dataset="digits_train")  # settings are chosen on other images than figures are reported on

benchmark = typer.Typer(no_args_is_help=True, help="Measure the library itself.")


@benchmark.command(epilog="Example: dipdefense benchmark speed --out runs/speed")
def speed(
    points: Annotated[
        str,
        typer.Option(
            help="Comma-separated; all by default: small grey, small colour, large, large bilinear, published (CUDA)."
        ),
    ] = "",
    batches: Annotated[
        str, typer.Option(help="Comma-separated numbers of images; those of each point by default.")
    ] = "",
    precisions: Annotated[
        str, typer.Option(help="Comma-separated: full, bfloat16; on CUDA also tf32. All by default.")
    ] = "",
    device: options.Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for speed.csv, none by default; rows that it holds are not measured again."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled/--no-compiled", help="Also time the loop through torch.compile, and on CUDA the engine."
        ),
    ] = True,
) -> None:
    """Time the batched engine in image-steps per second, beside plain loops and the machine's matrix product."""
    from eval.fits.speed import benchmark_speed

    if not all(text.isdecimal() and int(text) for text in options.names(batches)):
        raise ValueError(f"batches must be integers of at least 1 such as 1,64,512, got {batches!r}")
    with progress_bar("rows") as progress:
        table = benchmark_speed(
            options.names(points) or None,
            batches=[int(text) for text in options.names(batches)] or None,
            precisions=options.names(precisions) or None,
            device=options.device_named(device),
            compiled=compiled,
            out=out,
            progress=progress,
        )
    print_frame(table)


@benchmark.command(epilog="Example: dipdefense benchmark iterations --longest 120 --every 10 --out runs/iterations")
@options.fields_as_options
def iterations(
    subject: options.Subject = TRAINING,
    eps: options.Eps = "0.2",
    n: options.Count = 50,
    longest: Annotated[int, typer.Option(help="Iterations of the fit.")] = 200,
    every: Annotated[int, typer.Option(help="Iterations between two rows.")] = 20,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder for iterations.csv; none by default.")] = None,
) -> None:
    """Measure accuracy and PSNR along a fit, clean and under PGD, as when the default iterations were chosen."""
    from eval.fits.accuracy_along_fit import accuracy_along_fit
    from eval.robustness.config import RunConfig

    where = options.device_named(device)
    settings = RunConfig(attacks=("pgd",), eps=options.number("eps", eps), n=n, seed=seed)
    images, net = subject.load(where)
    fit = replace(options.fit_config(config) or _single_fit(tuple(images[0][0].shape)), iterations=longest)
    with progress_bar("iterations") as progress:
        table = accuracy_along_fit(net, images, settings, fit, every=every, device=where, progress=progress)
    print_frame(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "iterations.csv", index=False)


@benchmark.command(epilog="Example: dipdefense benchmark stopping --data photos --rules emv,discrepancy --n 4")
def stopping(
    data: Annotated[Path, typer.Option(help="Folder of clean images.")],
    resize: options.ResizeTo = 128,
    crop: options.CropTo = 128,
    rules: Annotated[str, typer.Option(help="Comma-separated stopping rules.")] = ",".join(STOPPING_RULES),
    of_rules: Annotated[
        Path | None, typer.Option("--options", help="JSON file of rule names and their options.")
    ] = None,
    noises: Annotated[str, typer.Option(help="Comma-separated: gaussian, impulse, shot, speckle.")] = (
        "gaussian,impulse,shot,speckle"
    ),
    levels: Annotated[str, typer.Option(help="Comma-separated: low, medium, high.")] = "low,medium,high",
    n: Annotated[int | None, typer.Option(help="Images: the first n of a seeded permutation; all by default.")] = None,
    iterations: Annotated[int, typer.Option(help="Iterations of the fits.")] = 1000,
    longest: Annotated[
        int | None,
        typer.Option(
            help="Repeat fits shorter than three times their best iterate, with at most this many iterations."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images fitted together.")] = 16,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: options.RunFolder = Path("runs/stopping"),
) -> None:
    """Measure how far from the best iterate each stopping rule stops, on images under known noise, and its cost."""
    from eval.fits.stopping import benchmark_stopping
    from eval.photographs import read_photos

    where = options.device_named(device)
    images = read_photos(data, resize=resize, crop=crop, n=n, seed=seed)
    chosen = options.fit_config(config) or _single_fit((3, crop, crop))
    with progress_bar("records") as progress:
        table = benchmark_stopping(
            images,
            options.rule_options(of_rules, options.names(rules)),
            replace(chosen, iterations=iterations, stopping="fixed", stopping_options={}),
            noises=options.names(noises),
            levels=options.names(levels),
            longest=longest,
            batch_size=batch_size,
            seed=seed,
            device=where,
            out=out,
            progress=progress,
        )
    print_frame(table)
    fits = table[table["noise"] == "all"].iloc[0]  # the same fits for every rule
    if fits["too_short"]:
        note(f"{fits['too_short']} of {fits['n']} fits were too short to know the best iterate: raise --longest")
    note(f"table and records: {out}")


@benchmark.command(
    epilog="Example: dipdefense benchmark defence --methods bare,jpeg,dip --attacks pgd --eps 0.1,0.2 --n 50"
)
@options.fields_as_options
def defence(
    subject: options.Subject = options.ON_DIGITS,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: bare, jpeg, bit_depth, median, gaussian_blur, total_variation, non_local_means, "
            "bm3d, noise_level, dip, dip_mean, detector_gated, cross_boundary, default, dipdefend."
        ),
    ] = (
        "bare,noise_level,jpeg,bit_depth,median,gaussian_blur,total_variation,non_local_means,dip,dip_mean,"
        "detector_gated,cross_boundary"
    ),
    views: Annotated[
        str, typer.Option(help="Comma-separated views, such as identity,mirror, that each method also averages over.")
    ] = "identity",
    attacks: options.Attacks = None,
    norm: options.Norm = "linf",
    eps: Annotated[str, typer.Option(help="Comma-separated radii, images in [0, 1].")] = "4/255,8/255",
    steps: options.AttackSteps = 20,
    n: options.Count = 100,
    longest: options.Iterations = None,
    looks: Annotated[int, typer.Option(help="Number of iterations of the fit that are evaluated, evenly spaced.")] = 10,
    restarts: Annotated[int, typer.Option(help="Fits of every image for dip, dip_mean; the default has its own.")] = 1,
    baseline: Annotated[
        str | None, typer.Option(help="METHOD:STRENGTH that all others are compared with; the first by default.")
    ] = None,
    batch_size: options.BatchSize = 64,
    seed: options.Seed = 0,
    fit_seed: Annotated[int | None, typer.Option(help="Seed of the fits alone; that of --seed by default.")] = None,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    mirror: options.Mirror = True,
    tile: options.Tile = None,
    out: options.RunFolder = Path("runs/defence"),
) -> None:
    """Compare defences over their strengths, in accuracy and detection, on one set of adversarial images."""
    from eval.robustness.comparison import ComparisonConfig, benchmark_defence
    from eval.robustness.defences_by_name import build_methods

    where, radii = options.device_named(device), [options.number("eps", text) for text in options.names(eps)]
    if not radii:
        raise ValueError(f"eps must be one or more radii such as 4/255,8/255, got {eps!r}")
    family, _, strength = (baseline or "").rpartition(":")
    settings = ComparisonConfig(
        attacks=None if attacks is None else options.names(attacks),
        norm=norm,
        eps=radii[0],
        radii=radii,
        baseline=(family, options.number("baseline", strength)) if baseline else None,
        steps=steps,
        n=n,
        seed=seed,
        batch_size=batch_size,
    )
    images, net = subject.load(where)
    own, default = options.fit_config(config), defence_for(tuple(images[0][0].shape), net, mirror=mirror)
    chosen = own or default.fit
    chosen = replace(chosen, iterations=chosen.iterations if longest is None else longest)
    if not 1 <= looks <= chosen.iterations:
        raise ValueError(f"looks must lie between 1 and the {chosen.iterations} iterations of the fit, got {looks}")
    tile = tile if tile is not None or config is not None else default.tile
    compared = build_methods(
        options.names(methods),
        net,
        Purifier(chosen, seed=seed if fit_seed is None else fit_seed, tile=tile),
        iterations=[round(chosen.iterations * k / looks) for k in range(1, looks + 1)],
        restarts=restarts,
        views=tuple(options.names(views)),
        default=default.decision if own is None and longest is None else None,
    )
    with progress_bar("records") as progress:
        table = benchmark_defence(
            net,
            images,
            compared,
            settings,
            out=out,
            classifier_name=subject.classifier,
            device=where,
            progress=progress,
        )
    print_frame(table, COMPARED)
    note(f"table, paired differences, detection, curves, records: {out}")
    note("these attacks do not know the defence; judge it by dipdefense ladder")


@benchmark.command(epilog="Example: dipdefense benchmark gradients --n 4 --steps 10,20")
@options.fields_as_options
def gradients(
    subject: options.Subject = options.ON_DIGITS,
    compared: Annotated[
        str, typer.Option("--gradients", help="Comma-separated gradients of the ladder; all by default.")
    ] = "",
    n: options.Count = 8,
    steps: Annotated[str, typer.Option(help="Comma-separated numbers of steps whose cost is measured.")] = "25,100,225",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder for slopes.csv and cost.csv.")] = Path("runs/gradients"),
) -> None:
    """Check each gradient through a fit by finite differences, and measure the cost of the exact one."""
    from attacks.adaptive import SURROGATES
    from eval.fits.gradient_check import compare_gradients, cost_of_unrolling

    where = options.device_named(device)
    unknown = [name for name in options.names(compared) if name not in SURROGATES]
    if unknown:
        raise ValueError(f"gradients must be among {', '.join(SURROGATES)}, got {unknown[0]!r}")
    if not all(text.isdecimal() and int(text) for text in options.names(steps)):
        raise ValueError(f"steps must be integers of at least 1 such as 25,100,225, got {steps!r}")
    pictures, net = subject.load(where)
    if not 1 <= n <= len(pictures):
        raise ValueError(f"n must lie between 1 and the {len(pictures)} images, got {n}")
    order = pictures.first(n, seed)
    images, labels = pictures.batch(order.tolist()).double().to(where), pictures.labels[order].to(where)
    defended = DefendedClassifier(net.double(), Purifier(options.fit_config(config), seed=seed))
    chosen = {name: SURROGATES[name] for name in options.names(compared) or SURROGATES}
    with progress_bar("gradients") as progress:
        table = compare_gradients(defended, images, labels, gradients=chosen, progress=progress)
    purifier, _ = defended.plan(images)
    chosen_fit, shape, counts = purifier.config_for(images), tuple(images.shape[1:]), map(int, options.names(steps))
    with progress_bar("unrolled steps") as progress:
        cost = cost_of_unrolling(chosen_fit, shape, list(counts), progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "slopes.csv", index=False)
    cost.to_csv(out / "cost.csv", index=False)
    print_frame(table)
    print_frame(cost)


def _single_fit(shape: tuple[int, ...]) -> FitConfig:
    """The fit that was tuned for one reconstruction of images of shape (C, H, W)."""
    return defence_for(shape, decision="last").fit
