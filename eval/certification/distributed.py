"""Certificates on a Ray cluster: its workers count the blocks, and the folder is that of a local run."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from dipdefense.digest import configuration_hash
from dipdefense.distributed import Cluster
from dipdefense.distributed.cluster import connected
from dipdefense.distributed.pool import Lost, compute
from eval.certification.blocks import Block, BlockCounter, Counted
from eval.certification.config import CertificationConfig
from eval.certification.run import certify_blocks, describe_run
from eval.datasets import ImageDataset

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

    The next blocks of all images and purifiers are handed out together, and each is stored here when it is counted. If
    no worker could finish one (`dipdefense.distributed.pool`), the run ends with an error after the others are counted.

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
        RuntimeError: a worker failed, or a block could not be finished.
    """
    cluster = cluster or Cluster()
    dataset, classifier = load("cpu")
    described = partial(describe_run, name=classifier_name, config=config, device=cluster.device)
    description = described(classifier, dataset=dataset)
    build = partial(_Counting, load, config, Path.cwd(), cluster.device, described, configuration_hash(description))

    def count(blocks: Sequence[Block]) -> Iterator[tuple[int, Counted]]:
        lost: dict[int, Lost] = {}
        for number, result in compute(cluster, build, range(len(blocks)), blocks.__getitem__):
            if isinstance(result, Lost):
                lost[number] = result
            else:
                yield number, result
        if lost:
            images = sorted({int(dataset.index[blocks[number].position]) for number in lost})
            raise RuntimeError(
                f"{len(lost)} of {len(blocks)} blocks could not be counted, of images {', '.join(map(str, images))}: "
                f"{lost[min(lost)].reason}. The others are stored, and the same command goes on from there"
            )

    with connected(cluster.address):
        return certify_blocks(
            count, classifier, dataset, config, out=out, description=description, together=True, progress=progress
        )


class _Counting:
    """The work of a worker: a block in, its counts out."""

    def __init__(
        self,
        load: Load,
        config: CertificationConfig,
        cwd: Path,
        device: str,
        described: Callable[..., dict[str, object]],
        whole: str,
    ):
        with suppress(OSError):  # relative paths of the run start there; if it is missing, their errors say so
            os.chdir(cwd)
        dataset, classifier = load(device)
        if configuration_hash(described(classifier, dataset=dataset)) != whole:
            raise RuntimeError(
                "classifier, weights and versions must be the same on all machines, but differ on this one"
            )
        self.count = BlockCounter(classifier, dataset, config, device)

    def __call__(self, block: Block) -> Counted:
        return self.count(block)
