"""The command `dipdefense certify`."""

from pathlib import Path
from typing import Annotated, Any

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar

__all__ = ["certify"]


@options.fields_as_options
def certify(
    subject: options.Subject = options.ON_DIGITS,
    sigma: Annotated[
        str, options.defence_option(help="Standard deviation of the noise, images in [0, 1]: 0.12 or 31/255.")
    ] = "0.12",
    purifiers: Annotated[
        str,
        options.defence_option(
            help="Comma-separated, on the same noise: dip, cosine, none, jpeg, non_local_means, total_variation, "
            "gaussian_blur, median, bit_depth, bm3d."
        ),
    ] = "dip",
    mirror: options.Mirror = True,
    n0: Annotated[int, options.run_option("--n0", help="Draws of noise that choose the class of an image.")] = 32,
    samples: Annotated[int, options.run_option(help="Further draws that bound the share of that class.")] = 1000,
    alpha: Annotated[float, options.run_option(help="Probability, at most, that a certificate is wrong.")] = 0.001,
    targets: Annotated[
        str,
        options.run_option(
            help="Comma-separated L2 radii, such as 0.1,0.25: an image ends once each is certified or out of reach, "
            "and the tables have these radii alone. By default an image ends early only if it will abstain."
        ),
    ] = "",
    n: options.Count = 100,
    seed: Annotated[int, options.run_option(help="Seed of images and noise.")] = 0,
    block: Annotated[
        int, options.run_option(help="Draws of an image that are purified together, and saved when they are done.")
    ] = 256,
    device: options.DeviceOrCluster = "cpu",
    out: options.RunFolder = Path("runs/certify"),
) -> None:
    """Certify classes by randomised smoothing: an L2 radius in which no attack changes the smoothed class.

    The certificate is that of the smoothed classifier (the majority over noisy, purified copies), and is wrong with
    a probability of at most alpha. An image without one abstains.
    """
    from dipdefense.defence.certify import SamplingPlan
    from eval.certification import CertificationConfig, certify_dataset

    where, cluster = options.device_or_cluster(device)
    config = CertificationConfig(
        plan=SamplingPlan(
            sigma=options.number("sigma", sigma),
            n0=n0,
            n=samples,
            alpha=alpha,
            targets=tuple(options.number("targets", target) for target in options.names(targets)),
        ),
        purifiers=options.names(purifiers),
        mirror=mirror,
        n=n,
        seed=seed,
        block=block,
    )
    with progress_bar("draws") as progress:
        keywords: dict[str, Any] = {"out": out, "classifier_name": subject.classifier, "progress": progress}
        if cluster is None:
            images, classifier = subject.load(where)
            table = certify_dataset(classifier, images, config, device=where, **keywords)
        else:
            from eval.certification.distributed import certify_on_cluster

            table = certify_on_cluster(subject.load, config, cluster=cluster, **keywords)
    print_frame(table)
    if not config.plan.targets:
        reach = config.plan.radius(samples, samples)
        limits = f"with {samples} samples at alpha {alpha:g}"
        note(f"no radius above {reach:.3g} can be certified {limits}: rows beyond it are 0")
    note(f"tables and records: {out}")
