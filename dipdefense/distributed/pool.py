"""Items handed out to the workers of a Ray cluster, one at a time and a bounded number of times."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from dipdefense.distributed.cluster import Cluster, connected, count_workers
from dipdefense.distributed.storage_retries import OutageError

__all__ = ["Lost", "Work", "compute"]

TRIES = 3  # an item is given up after it ended so many workers

Work = Callable[[Any], Any]  # what is sent for an item -> the answer of the worker; both picklable


class Lost(NamedTuple):
    """In place of a result: an item that was given up."""

    reason: str
    killed: bool  # True: its workers died. False: their memory did not suffice, or their device failed


class _Failed(NamedTuple):
    """In place of a result: one try that failed."""

    reason: str
    killed: bool = False


class _Unanswered(NamedTuple):
    """In place of a result: storage did not answer, which is the fault of neither the item nor the worker."""

    reason: str


def compute(
    cluster: Cluster, build: Callable[[], Work], items: Sequence[int], part: Callable[[int], Any]
) -> Generator[tuple[int, Any], None, None]:
    """Give every item to one of the workers, and yield each with its result when it is done.

    If a worker dies, runs out of memory or its device fails, its item is given to a new worker, after the other
    items; after `TRIES` workers its result is `Lost`. So an item may be computed twice, and its work must be
    harmless to repeat. If storage does not answer, the item waits behind the others, and the run ends when no other
    item is left.

    Args:
        cluster: where.
        build: makes the work of a worker, once in each; picklable.
        items: what is to be done, by number.
        part: what is sent to a worker for an item; called when a worker is free for it.

    Raises:
        ImportError: ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: more workers, or more CPUs or GPUs for each, than the cluster has.
        RuntimeError: the work raised anything else, or storage does not answer; items that are done stay.
    """
    if not items:
        return
    with connected(cluster.address):
        pool = _Pool(cluster, build, count_workers(cluster, len(items)))
        try:
            yield from pool.run(items, part)
        finally:
            pool.end()


class _Worker:
    """An actor: builds its work once, then does one item after the other."""

    def start(self, build: Callable[[], Work], cpus: int) -> None:
        torch.set_num_threads(cpus)
        self.work = build()

    def do(self, sent: Any) -> Any:
        try:
            return self.work(sent)
        except OutageError as error:
            return _Unanswered(str(error))
        except (torch.AcceleratorError, torch.OutOfMemoryError, MemoryError) as error:
            return _Failed(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


class _Pool:
    """Workers, each with one item or idle, and the items that wait for them."""

    def __init__(self, cluster: Cluster, build: Callable[[], Work], size: int):
        import ray

        # Ray does not restart a worker that died, since this class knows which item it had.
        self.kind = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)(_Worker)
        self.arguments = ray.put(build), cluster.cpus
        self.answers: dict[Any, tuple[Any, int | None]] = {}  # awaited: (worker, item), where None is its start
        self.idle: list[Any] = []
        self.waiting: deque[int] = deque()
        self.deaths: Counter[int | None] = (
            Counter()
        )  # of workers, by item; None counts those in a row that died while they started
        self.outages = 0  # in a row
        self.patience = TRIES * size
        for _ in range(size):
            self._hire()

    def run(self, items: Sequence[int], part: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        """See `compute`."""
        import ray

        self.waiting.extend(items)
        outage = None
        while self.waiting or any(item is not None for _, item in self.answers.values()):
            (answer,), _ = ray.wait(list(self.answers))
            worker, item = self.answers[answer]
            result = _get(answer)
            del self.answers[answer]
            if isinstance(result, _Failed):
                result = self._replace(worker, item, result)
            else:
                self.idle.append(worker)
                self.deaths[None] = 0
            if isinstance(result, _Unanswered) and item is not None:
                outage = self._postpone(item, result) or outage
            while self.waiting and self.idle:
                given, free = self.waiting.popleft(), self.idle.pop()
                self.answers[free.do.remote(part(given))] = free, given
            if item is not None and not isinstance(result, _Failed | _Unanswered):
                self.outages = 0
                yield item, result
        if outage is not None:
            raise RuntimeError(f"{outage.reason}; start again, finished shards stay")

    def end(self) -> None:
        """End the workers, whatever they do."""
        import ray

        for worker in [*self.idle, *(worker for worker, _ in self.answers.values())]:
            with suppress(ray.exceptions.RayError):
                ray.kill(worker)

    def _hire(self) -> None:
        worker = self.kind.remote()
        self.answers[worker.start.remote(*self.arguments)] = worker, None

    def _replace(self, worker: Any, item: int | None, failed: _Failed) -> _Failed | Lost:
        """Start a new worker, in a process of its own; the item waits again, or is lost."""
        import ray

        ray.kill(worker)
        self.deaths[item] += 1
        if item is None and self.deaths[None] == self.patience:
            raise RuntimeError(f"a worker failed: {failed.reason}; {self.patience} in a row, each while it started")
        self._hire()
        if item is None:
            return failed
        if self.deaths[item] == TRIES:
            reason = f"killed its worker {TRIES} times" if failed.killed else f"failed {TRIES} times: {failed.reason}"
            return Lost(reason, failed.killed)
        self.waiting.append(item)
        return failed

    def _postpone(self, item: int, unanswered: _Unanswered) -> _Unanswered | None:
        """Let the item wait again; after too many outages in a row, drop all items and return this outage."""
        self.outages += 1
        if self.outages < self.patience:
            self.waiting.append(item)
            return None
        self.waiting.clear()
        return unanswered


def _get(answer: Any) -> Any:
    """What a worker answered."""
    import ray
    from ray import exceptions as of_ray

    gone = (
        of_ray.RayActorError,
        of_ray.OutOfMemoryError,
        of_ray.WorkerCrashedError,
        of_ray.NodeDiedError,
        of_ray.LocalRayletDiedError,
        of_ray.ObjectLostError,
    )
    try:
        return ray.get(answer)
    except gone as error:
        return _Failed(_reason(error), killed=True)
    except of_ray.RayError as error:
        raise RuntimeError(f"a worker failed: {_reason(error)}; start again, finished shards stay") from error


def _reason(error: BaseException) -> str:
    """What the work raised, without the lines that Ray adds. If Ray itself failed, the last line, which says why."""
    cause = getattr(error, "cause", None)
    lines = str(cause or error).strip().splitlines() or [""]
    return f"{type(cause or error).__name__}: {lines[0 if cause else -1].strip()}"
