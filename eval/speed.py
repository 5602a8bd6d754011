"""How fast the batched engine is: beside a plain loop over single networks, and beside the machine's matrix product."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dipdefense import FitConfig, default_config, fit
from dipdefense.config import build_network

__all__ = ["POINTS", "Point", "benchmark_speed", "seconds_per_step"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: a configuration, an image size and the batch sizes to try."""

    name: str
    config: FitConfig
    shape: tuple[int, int, int]  # (C, H, W)
    batches: Sequence[int]
    iterations: int  # timed, after as many to warm up


POINTS = (
    Point(
        name="small grey",
        config=default_config((1, 32, 32)),
        shape=(1, 32, 32),
        batches=(1, 16, 64),
        iterations=20,
    ),
    Point(
        name="small colour",
        config=default_config((3, 32, 32)),
        shape=(3, 32, 32),
        batches=(1, 16, 64),
        iterations=20,
    ),
    Point(name="large", config=default_config((3, 224, 224)), shape=(3, 224, 224), batches=(1, 4), iterations=5),
)


def benchmark_speed(
    points: Sequence[Point] = POINTS, *, device: str | torch.device = "cpu", repeats: int = 3
) -> pd.DataFrame:
    """Time the engine and the plain loop in turn, on random images, `repeats` times.

    The loop is the best plain one: the same network, input and jitter, one image at a time, eager, fused Adam, all
    threads. Its rate does not depend on the number of images.

    Returns:
        One row per point and batch: `point, size, batch, iterations, loop, engine` (image-steps per second),
        `ratio` (engine / loop), `gflop` (of an image-step, convolutions counted), `gflops` (achieved per second),
        `matmul_gflops` (a float32 product of 2048 x 2048 matrices on the same machine) and `share` of it.
    """
    device = torch.device(device)
    matmul = _matmul_flops(device)
    rows = []
    for point in points:
        images = torch.rand(max(point.batches), *point.shape, generator=torch.Generator().manual_seed(0)).to(device)
        flop = _flop(point, images[:1])
        timed: dict[int | None, Callable[[int], None]] = {None: partial(_plain_loop, images[0], point.config)}
        timed |= {B: partial(_engine, images[:B], point.config) for B in point.batches}
        seconds = seconds_per_step(timed, point.iterations, repeats, device)
        loop = 1 / seconds[None]
        engine = {B: B / seconds[B] for B in point.batches}
        for B in point.batches:
            rows.append(
                {
                    "point": point.name,
                    "size": "x".join(map(str, point.shape)),
                    "batch": B,
                    "iterations": point.iterations,
                    "loop": loop,
                    "engine": engine[B],
                    "ratio": engine[B] / loop,
                    "gflop": flop / 1e9,
                    "gflops": engine[B] * flop / 1e9,
                    "matmul_gflops": matmul / 1e9,
                    "share": engine[B] * flop / matmul,
                }
            )
    return pd.DataFrame(rows)


def _engine(images: Tensor, config: FitConfig, iterations: int) -> None:
    fit(images, dataclasses.replace(config, iterations=iterations, memory_gb=64.0))


def _plain_loop(image: Tensor, config: FitConfig, iterations: int) -> None:
    """The reference: one network, torch's own modules and optimiser."""
    with torch.random.fork_rng():
        net = build_network(config, len(image)).to(image)
        z = 0.1 * torch.rand(1, config.input_channels, *image.shape[1:], device=image.device)
        adam = torch.optim.Adam(net.parameters(), lr=config.lr, fused=True)
        for _ in range(iterations):
            adam.zero_grad()
            loss = (net(z + config.jitter * torch.randn_like(z)) - image).square().mean()
            torch.autograd.backward(loss)
            adam.step()


def seconds_per_step(
    calls: Mapping[int | None, Callable[[int], None]], n: int, repeats: int, device: torch.device
) -> dict[int | None, float]:
    """Seconds of one step of calls that make n steps, their fixed costs taken out: the time of 2n less that of n.

    Each length counts at its fastest of `repeats`, and the calls take turns, so that a disturbance slows them alike.

    Raises:
        RuntimeError: twice the steps took no longer; the machine is too restless, or n too small.
    """
    fastest = {(name, count): math.inf for name in calls for count in (n, 2 * n)}
    for _ in range(repeats):
        for name, count in fastest:
            _synchronize(device)
            start = time.perf_counter()
            calls[name](count)
            _synchronize(device)
            fastest[name, count] = min(fastest[name, count], time.perf_counter() - start)
    seconds = {name: (fastest[name, 2 * n] - fastest[name, n]) / n for name in calls}
    if min(seconds.values()) <= 0:
        raise RuntimeError("twice the steps must take longer: time again on a quiet machine, or more iterations")
    return seconds


def _flop(point: Point, image: Tensor) -> float:
    """Floating-point operations of one step of one image, forward and backward."""
    net = build_network(point.config, point.shape[0]).to(image)
    z = torch.rand(1, point.config.input_channels, *point.shape[1:], device=image.device)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward((net(z) - image).square().mean())
    return float(counter.get_total_flops())


def _matmul_flops(device: torch.device, n: int = 2048) -> float:
    a = torch.rand(n, n, device=device)

    def products(count: int) -> None:
        for _ in range(count):
            a @ a

    return 2 * n**3 / seconds_per_step({None: products}, 5, 3, device)[None]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
