"""Certificates on a Ray cluster: its workers count the blocks, and the folder is that of a local run."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from dipdefense.digest import configuration_hash
from dipdefense.distributed import Cluster
from dipdefense.distributed.cluster import connected
from dipdefense.distributed.pool import compute
from eval.certification.blocks import Block, BlockCounter
from eval.certification.config import CertificationConfig
from eval.certification.run import Counts, certify_blocks, describe_run, open_run
from eval.datasets import ImageDataset
from eval.records import Record

__all__ = ["Load", "certify_on_cluster"]

Load = Callable[[str], tuple[ImageDataset, nn.Module]]  # images and classifier, which is on the device that is named


def certify_on_cluster(
    load: Load,
    config: CertificationConfig,
    *,
    out: str | Path,
    classifier_name: str | None = None,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """As `certify_dataset`, with the blocks counted by the workers of a cluster.

    The blocks of all images and purifiers, up to the next draw at which each may end, are handed out together, and each
    is stored here when it is counted. An image of which no worker could finish a block (`dipdefense.distributed.pool`)
    ends the run with an error after all others are certified.

    Args:
        load: picklable; called here and by every worker, so the files that it reads must be visible to all.
        config: the settings; `block` is what a worker purifies together.
        out: folder of the run, on this machine.
        classifier_name: for the description; the class name if None.
        cluster: `Cluster()`, which is this machine, if None.
        progress: called with (draws done or no longer needed, draws in all) after every block.

    Raises:
        ImportError: ray is not installed.
        OSError: the folder cannot be written, no cluster answers.
        ValueError: as `certify_dataset`; the cluster has no room.
        RuntimeError: a worker failed or has other images or another classifier, or a block could not be finished.
    """
    cluster = cluster or Cluster()
    dataset, classifier = load("cpu")
    described = partial(describe_run, name=classifier_name, config=config, device=cluster.device)
    description = described(classifier, dataset=dataset)
    run = open_run(classifier, dataset, config, out=out, description=description)
    build = partial(_counter, load, config, Path.cwd(), cluster.device, described, configuration_hash(description))

    def count(blocks: Sequence[Block]) -> Counts:
        yield from compute(cluster, build, range(len(blocks)), blocks.__getitem__)

    with connected(cluster.address):
        return certify_blocks(run, count, dataset, config, description, together=True, progress=progress)


def _counter(
    load: Load, config: CertificationConfig, cwd: Path, device: str, described: Callable[..., Record], whole: str
) -> BlockCounter:
    """The work of a worker: a block in, its counts out."""
    with suppress(OSError):  # relative paths of the run start there; if it is missing, their errors say so
        os.chdir(cwd)
    dataset, classifier = load(device)
    if configuration_hash(described(classifier, dataset=dataset)) != whole:
        raise RuntimeError(
            "images, classifier, weights and versions must be the same on all machines, but differ on this one"
        )
    return BlockCounter(classifier, dataset, config, device)
