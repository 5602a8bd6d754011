"""The speed of the batched engine, beside plain loops over single networks and the machine's matrix product.

A run writes its description to `config.json`, each row to `records.jsonl` and to the table `speed.csv` as soon as it is
measured. A killed run is continued by the same call, and points, precisions and batches may be added.
"""

import dataclasses
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from dipdefense import FitConfig, defence_for, fit
from dipdefense.arguments import check_integer
from dipdefense.fitting.config import PRECISIONS, build_network
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.inputs import INPUTS
from eval.cost import peak_resident
from eval.metrics import psnr
from eval.records import Record, Records, Run, made_with, read_records, write_whole

__all__ = ["POINTS", "Point", "benchmark_speed", "plain_loop", "seconds_per_step"]

logger = logging.getLogger(__name__)
Name = TypeVar("Name")
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}  # of matrices whose product keeps the device busy
PATIENCE = 10  # times the repeats of a timing that other work disturbs
VARIANTS = 64  # variants of one network that torch compiles before it falls back to eager mode
KEY = ("point", "precision", "compiled", "batch")  # the fields that name a row
MEMORY_ITERATIONS = 3  # the memory of a fit does not grow after the first


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: a configuration, an image size and the batch sizes to try."""

    name: str
    config: FitConfig  # its loss the mean squared error; the stopping rule and the average of iterates do not count
    shape: tuple[int, int, int]  # (C, H, W), sides multiples of the network's stride
    batches: Sequence[int]
    iterations: int  # timed, after as many to warm up


WIDE = {"channels": [16, 32, 64, 128, 128], "skip_channels": 4}


def _points(small: Sequence[int], large: Sequence[int]) -> tuple[Point, ...]:
    """The defaults of small images, and networks of five scales for large ones, at these batch sizes."""
    nearest, bilinear = (
        FitConfig(architecture_options=WIDE | {"upsampling": mode}) for mode in ("nearest", "bilinear")
    )
    grey, colour, photo = (1, 32, 32), (3, 32, 32), (3, 224, 224)
    return (
        Point(
            name="small grey", config=defence_for(grey, decision="last").fit, shape=grey, batches=small, iterations=20
        ),
        Point(
            name="small colour",
            config=defence_for(colour, decision="last").fit,
            shape=colour,
            batches=small,
            iterations=20,
        ),
        Point(name="large", config=nearest, shape=photo, batches=large, iterations=5),
        Point(name="large bilinear", config=bilinear, shape=photo, batches=large, iterations=5),
    )


PUBLISHED = Point(name="published", config=FitConfig(), shape=(3, 512, 512), batches=(1,), iterations=20)
POINTS = {  # by the type of the device
    "cpu": _points(small=(1, 16, 64, 128), large=(1, 4, 8)),
    "cuda": (*_points(small=(1, 64, 512), large=(1, 8, 64)), PUBLISHED),
}


def benchmark_speed(
    points: Sequence[Point | str] | None = None,
    *,
    batches: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    repeats: int = 3,
    compiled: bool = True,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Time the engine and two plain loops in turn, on random images, `repeats` times for each row.

    The loops fit one network after the other in float32 (see `plain_loop`), so that their rate does not depend on
    the number of images. On the CPU the memory is measured in separate processes, so a script must call this below
    `if __name__ == "__main__"`. On CUDA the compiled engine is timed, too (on the CPU it is known to be slower).

    Args:
        points: what is measured; a name stands for one of the device in `POINTS`. None: all of these.
        batches: numbers of images, in place of those of each point.
        precisions: keys of `PRECISIONS`; None: all that the device has.
        device: where to compute.
        repeats: times that each call is timed; the fastest counts.
        compiled: also time what `torch.compile` makes of the loop, and on CUDA of the engine.
        out: folder of the run, made if missing; a row that it holds is not measured again. None: nothing is written.
        progress: called with (rows that are there, rows in all) after every row.

    Returns:
        One row per point, engine and batch: `point, size, precision, compiled, batch, iterations`; `loop,
        compiled_loop, engine` (image-steps per second), `ratio` (engine / loop) and `ratio_compiled`, empty if not
        `compiled` or if torch finds no compiler; `gflop` (operations of the convolutions in an image-step, as the loop
        computes them) and `gflop_engine` (the same in the engine, without zero channels); `gflops` (`gflop_engine` per
        second that the engine achieves), `matmul_gflops` (that of a product of large square matrices in that precision)
        and `share` (their ratio); `peak_gb` (memory that the engine's call adds, in GiB); `psnr_db` (PSNR of the
        engine's first reconstruction after `iterations` against that of the eager loop, empty where they are equal.
        They agree in float64. In float32 Adam magnifies the rounding of gradients near zero, and rounding alone can
        lead to 30 dB).

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device; an unknown point or precision; a batch below 1; a
            folder that holds another run.
        RuntimeError: other work disturbed the machine; the rows before are in the folder.
    """
    device = torch.device(device)
    chosen, precisions = _points_named(points, batches, device), _precisions_named(precisions, device)
    described = {
        **{"run": "benchmark speed", "device": _device_name(device), "threads": torch.get_num_threads()},
        **{"repeats": repeats, "compiled": compiled, **made_with("dipdefense", "torch")},
        "points": {point.name: dataclasses.asdict(dataclasses.replace(point, batches=())) for point in chosen},
    }
    run = Records(KEY) if out is None else Run(out, KEY, described, grows=("points",))
    if isinstance(run, Run):
        run.begin()
    engines = [False, True] if compiled and device.type == "cuda" else [False]
    heads = {
        point.name: [_head(point, p, whole, B) for p in precisions for whole in engines for B in point.batches]
        for point in chosen
    }
    done = [head for point in chosen for head in heads[point.name]]
    matmul = {p: _matmul_flops(device, p) for p in precisions if run.missing(h for h in done if h["precision"] == p)}
    with torch._dynamo.config.patch(recompile_limit=VARIANTS):
        for point in chosen:
            missing = run.missing(heads[point.name])
            measure = _measure(point, device, repeats, compiled) if missing else None
            for head in missing:
                assert measure is not None
                figures = measure(head, matmul[head["precision"]])
                if figures is None:
                    continue
                run.add([head | figures])
                if isinstance(run, Run):
                    table = pd.DataFrame(read_records(run.folder / "records.jsonl"))
                    write_whole(run.folder / "speed.csv", table.to_csv(index=False))
                if progress is not None:
                    progress(len(done) - len(run.missing(done)), len(done))
    if isinstance(run, Run):
        run.end()
    return pd.DataFrame(run.records(row for row in done if not run.missing([row])))


def _points_named(
    points: Sequence[Point | str] | None, batches: Sequence[int] | None, device: torch.device
) -> list[Point]:
    if device.type not in POINTS:
        raise ValueError(f"device must be cpu or cuda, got {device}")
    known = {point.name: point for point in POINTS[device.type]}
    for name in points or ():
        if isinstance(name, str) and name not in known:
            raise ValueError(f"points must be among {', '.join(known)} on {device.type}, got {name!r}")
    for number in batches or ():
        check_integer("batches", number, 1)
    chosen = [known[point] if isinstance(point, str) else point for point in points or known.values()]
    return [point if not batches else dataclasses.replace(point, batches=batches) for point in chosen]


def _precisions_named(precisions: Sequence[str] | None, device: torch.device) -> list[str]:
    known = [name for name in PRECISIONS if name != "tf32" or device.type == "cuda"]
    for name in precisions or ():
        if name not in known:
            raise ValueError(f"precisions must be among {', '.join(known)} on {device.type}, got {name!r}")
    return list(precisions or known)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def _head(point: Point, precision: str, whole: bool, batch: int) -> Record:
    """The fields of a row that are known before it is measured; `whole`: the engine is compiled."""
    size = "x".join(map(str, point.shape))
    named = {"point": point.name, "size": size, "precision": precision, "compiled": whole, "batch": batch}
    return named | {"iterations": point.iterations}


def _measure(
    point: Point, device: torch.device, repeats: int, compiled: bool
) -> Callable[[Record, float], Record | None]:
    """A function of the head of a row and of the FLOP/s of a matrix product; it gives the figures of the row.

    They are None if the engine is to be compiled and torch finds no compiler.
    """
    torch.compiler.reset()
    image = _images(point.shape, 1)[0].to(device)
    loop = plain_loop(image, point.config)
    faster = _compiled_loop(image, point) if compiled else None
    reference, loops = loop(point.iterations), {"loop": loop} | ({"compiled_loop": faster} if faster else {})
    written, flop = _flop(point, stacked=False), _flop(point, stacked=True)

    def measure(head: Record, matmul: float) -> Record | None:
        if head["compiled"] and not faster:
            return None
        config = dataclasses.replace(point.config, precision=head["precision"], compile=head["compiled"])
        images = _images(point.shape, head["batch"]).to(device)
        engine = partial(_engine, images, config)
        quality = psnr(engine(point.iterations)[:1], reference).item()
        seconds = seconds_per_step({**loops, "engine": engine}, point.iterations, repeats, device)
        rate, eager = head["batch"] / seconds["engine"], 1 / seconds["loop"]
        other = 1 / seconds["compiled_loop"] if faster else None
        return {
            **{"loop": eager, "compiled_loop": other, "engine": rate},
            **{"ratio": rate / eager, "ratio_compiled": None if other is None else rate / other},
            **{"gflop": written / 1e9, "gflop_engine": flop / 1e9, "gflops": rate * flop / 1e9},
            **{"matmul_gflops": matmul / 1e9, "share": rate * flop / matmul},
            "peak_gb": _peak_bytes(images, config) / 2**30,
            "psnr_db": quality if math.isfinite(quality) else None,
        }

    return measure


def _images(shape: tuple[int, ...], batch: int) -> Tensor:
    """Uniform noise, (batch, C, H, W)."""
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))


def _engine(images: Tensor, config: FitConfig, iterations: int) -> Tensor:
    """The last iterates of the engine, (B, C, H, W); no image ends early, and all are in memory at once."""
    plain: dict[str, Any] = {"ema": 0.0, "stopping": "fixed", "stopping_options": {}, "memory_gb": 64.0}
    return fit(images, dataclasses.replace(config, iterations=iterations, **plain)).reconstruction


def plain_loop(image: Tensor, config: FitConfig, *, compiled: bool = False) -> Callable[[int], Tensor]:
    """The plain loop at its best: one network, torch's own fused Adam, all threads, without TF32.

    Weights, z and jitter are those of `fit` with seed 0, so the last output is the engine's last iterate.

    Args:
        image: the fitted image, (C, H, W), sides multiples of the network's stride; gives device and dtype.
        config: its architecture, input, lr and jitter; the loss is the mean squared error.
        compiled: run the network through torch.compile, on CUDA as captured graphs, instead of eagerly.

    Returns:
        A function of the number of iterations: it fits from the beginning and returns the last output,
        (1, C, H, W). If compiled, its first call compiles.
    """
    for_weights, for_z, for_jitter = (int(s) for s in np.random.SeedSequence(0).generate_state(3))
    with torch.random.fork_rng(devices=[]):  # modules draw from the global generator
        torch.default_generator.manual_seed(for_weights)
        net = build_network(config, len(image)).to(image)
    initial = {name: parameter.clone() for name, parameter in net.state_dict().items()}
    generator = torch.Generator().manual_seed(for_z)
    z = INPUTS[config.input](config.input_channels, *image.shape[1:], generator=generator).to(image)
    mode = "reduce-overhead" if image.is_cuda else "default"
    forward = torch.compile(net, fullgraph=True, dynamic=False, mode=mode) if compiled else net

    def loop(iterations: int) -> Tensor:
        net.load_state_dict(initial)
        generator = torch.Generator(z.device).manual_seed(for_jitter)
        adam = torch.optim.Adam(net.parameters(), lr=config.lr, fused=True)
        with fit_context(z.device, "full"):
            for _ in range(iterations):
                jitter = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
                adam.zero_grad()
                output: Tensor = forward(z + config.jitter * jitter)
                torch.autograd.backward((output - image).square().mean())
                adam.step()
        return output.detach().clone()  # captured graphs write into the same memory again

    return loop


def _compiled_loop(image: Tensor, point: Point) -> Callable[[int], Tensor] | None:
    """The compiled plain loop after its warm-up; None with a warning if torch finds no compiler."""
    loop = plain_loop(image, point.config, compiled=True)
    try:
        loop(point.iterations)
    except torch._dynamo.exc.TorchDynamoException as error:
        logger.warning("no compiled loop for %s: %s", point.name, str(error).splitlines()[0])
        return None
    return loop


def seconds_per_step(
    calls: Mapping[Name, Callable[[int], object]], n: int, repeats: int, device: torch.device
) -> dict[Name, float]:
    """Seconds of one step, without the fixed cost of a call: the time of 2n steps minus that of n steps, over n.

    Of each length the fastest of `repeats` calls counts. The calls take turns, so that a disturbance slows all alike.
    While twice the steps have not taken longer, all are timed again, `PATIENCE` times as often in all at most.

    Raises:
        RuntimeError: twice the steps took no longer, so other work disturbs the machine, or n is too small.
    """
    fastest = {(name, count): math.inf for name in calls for count in (n, 2 * n)}
    for timed in range(PATIENCE * repeats):
        if timed >= repeats and all(fastest[name, 2 * n] > fastest[name, n] for name in calls):
            break
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


def _flop(point: Point, *, stacked: bool) -> float:
    """Floating-point operations of the convolutions in one step of one network, alone or as a stack of one."""
    with torch.device("meta"):  # counts without computing
        net = build_network(point.config, point.shape[0])
        z = torch.empty(1, point.config.input_channels, *point.shape[1:])
    theta = {name: parameter[None] if stacked else parameter for name, parameter in net.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(functional_call(net, theta, (z,)).square().mean())
    counts = counter.get_flop_counts()["Global"]
    aten = torch.ops.aten
    return float(sum(counts[operator] for operator in (aten.convolution, aten.convolution_backward)))


def _matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of square matrices."""
    n = MATMUL_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.rand(n, n, device=device, generator=generator)
    matrix = matrix.bfloat16() if precision == "bfloat16" else matrix

    def products(count: int) -> None:
        for _ in range(count):
            matrix @ matrix

    with fit_context(device, precision):
        return 2 * n**3 / seconds_per_step({precision: products}, 5, 3, device)[precision]


def _peak_bytes(images: Tensor, config: FitConfig) -> float:
    """Memory that a fit adds at its peak; on the CPU in a fresh process, since a process has only one peak."""
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        _engine(images, config, MEMORY_ITERATIONS)
        return torch.cuda.max_memory_allocated(images.device) - before
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_resident_growth, tuple(images.shape), config, threads).result()


def _resident_growth(shape: tuple[int, ...], config: FitConfig, threads: int) -> float:
    """The bytes by which a fit of noise of `shape` (B, C, H, W) raises the peak memory of this process."""
    torch.set_num_threads(threads)
    images = _images(shape[1:], shape[0])
    before = peak_resident()
    _engine(images, config, MEMORY_ITERATIONS)
    return peak_resident() - before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
