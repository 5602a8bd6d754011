"""A Ray cluster: how to connect to it, and how many workers it has room for."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from dipdefense.arguments import check_integer
from dipdefense.distributed.storage import needs_ray

__all__ = ["Cluster", "connected", "count_workers"]

ANSWER_S = 20  # seconds within which a cluster must answer, the start of a Python with Ray included


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which machines compute, and how they are divided among workers.

    Raises:
        ValueError: a number out of range, a malformed address.
    """

    # HOST:PORT of a cluster, or auto on one of its nodes; None starts one on this machine. If the caller is
    # connected already, that connection is used, and this address is ignored.
    address: str | None = None
    workers: int | None = None  # None: as many as there is room for
    cpus: int = 1  # of each worker, which computes in as many threads
    gpus: int = 0  # of each worker; 0 computes on the CPU

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("cpus", 1), ("gpus", 0)):
            check_integer(name, getattr(self, name), least, none=name == "workers")
        if self.address is not None and self.address != "auto":
            host, _, port = self.address.rpartition(":")
            if not host or "/" in host or not port.isdecimal():
                raise ValueError(f"address must be HOST:PORT or auto, on a node of the cluster, got {self.address!r}")

    @property
    def device(self) -> str:
        """Where a worker computes."""
        return "cuda" if self.gpus else "cpu"


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray, and disconnect at the end; a connection that the caller made stays."""
    needs_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto"):
        _check_reachable(str(address))
    local = {"include_dashboard": False} if address is None else {}
    with _silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence Ray's C++ part, which writes to stderr itself, while Ray starts; later it logs fatal errors alone."""
    settings = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_reachable(address: str) -> None:
    """Ask in another process first: Ray itself would try for minutes, and then end this process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        ask = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
        subprocess.run([sys.executable, "-c", ask, address], capture_output=True, check=True, timeout=ANSWER_S)
        return
    except OSError as error:
        reason = str(error)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_S} s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
    if "InvalidAuthToken" in reason:
        raise ConnectionError(
            f"address must be that of a cluster that accepts this process's token, but {address} refuses it: set "
            "RAY_AUTH_MODE=token, or give --address auto on a node of the cluster; ~/.ray/auth_token must be the same"
        )
    raise ConnectionError(
        f"address must be that of a running Ray cluster, got {address}: {reason}; start one with ray start --head"
    )


def count_workers(cluster: Cluster, items: int) -> int:
    """How many workers to start, at most one for each item; raises if the cluster has no room for so many as asked."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)):
        largest = int(max((node.get(name, 0) for node in nodes), default=0))
        if each > largest:
            raise ValueError(f"{name.lower()}s must be at most the {largest} of one machine, got {each}")
    shares = [("CPU", cluster.cpus)] + [("GPU", cluster.gpus)] * (cluster.gpus > 0)
    room = sum(min(int(node.get(name, 0) // each) for name, each in shares) for node in nodes)
    if not room:
        raise ValueError(
            f"cpus and gpus must fit on one machine, but none has {cluster.cpus} CPUs and {cluster.gpus} GPUs"
        )
    if cluster.workers is not None and cluster.workers > room:
        raise ValueError(
            f"workers must be at most the {room} that the cluster has room for at {cluster.cpus} CPUs and "
            f"{cluster.gpus} GPUs each, got {cluster.workers}"
        )
    return min(cluster.workers or room, items)
