"""Chunks of images fitted side by side, one thread each: the same results, one callback at a time, no loose ends."""

import dataclasses
import itertools
import os
import signal
import threading
import time

import pytest
import torch

from dipdefense import FitConfig, fit
from dipdefense.fitting import workers
from dipdefense.fitting.workers import is_out_of_memory, map_in_threads, memory_budget, plan_chunks

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=30)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def images(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return (-10 * (a - b).square().mean().clamp_min(1e-30).log10()).item()


@pytest.mark.parametrize("stopping", ["fixed", "emv"])
def test_the_results_are_those_of_one_thread(stopping):
    options = {} if stopping == "fixed" else {"patience": 20}
    config = dataclasses.replace(TINY, iterations=120, stopping=stopping, stopping_options=options)
    smooth = torch.nn.functional.interpolate(images(5)[..., :4, :4], (16, 16), mode="bilinear")
    threads = set()
    together = fit(smooth, config, callback=lambda p: threads.add(threading.get_ident()))
    assert len(threads) == 2
    torch.set_num_threads(1)
    alone = fit(smooth, config, callback=lambda p: threads.add(threading.get_ident()))
    assert threading.get_ident() in threads
    assert together.chosen.tolist() == alone.chosen.tolist()
    assert together.stopped.tolist() == alone.stopped.tolist()
    assert decibels(together.reconstruction, alone.reconstruction) > 60


def test_neighbours_leave_an_image_bit_identical():
    observed = images(6, torch.float32)
    others = torch.cat([1 - observed[:5], observed[5:]])
    assert torch.equal(fit(observed, TINY).reconstruction[5], fit(others, TINY).reconstruction[5])
    assert torch.equal(fit(observed, TINY).reconstruction, fit(observed, TINY).reconstruction)


def test_the_callback_is_called_once_at_a_time_and_counts_all_the_work():
    inside, shares, positions = [], [], []

    def watch(progress):
        inside.append(1)
        time.sleep(0.001)
        assert len(inside) == 1
        shares.append(progress.share)
        positions.extend(progress.index.tolist())
        inside.clear()

    fit(images(5), TINY, callback=watch)
    assert sorted(positions) == sorted(list(range(5)) * TINY.iterations)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_images_that_stop_early_count_in_full():
    config = dataclasses.replace(TINY, iterations=600, stopping="emv", stopping_options={"patience": 40})
    smooth = torch.nn.functional.interpolate(images(4)[..., :4, :4], (16, 16), mode="bilinear")
    shares = []
    result = fit(smooth, config, callback=lambda p: shares.append(p.share))
    assert result.stopped.any()
    assert shares == sorted(shares)
    assert shares[-1] > result.iterations.sum() / (4 * 600)


def test_an_error_of_the_callback_ends_all_workers():
    calls = []

    def fail(progress):
        calls.append(progress.iteration)
        if len(calls) == 5:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fit(images(4), dataclasses.replace(TINY, iterations=100_000), callback=fail)
    assert len(calls) == 5


def test_an_error_of_one_worker_passes_unchanged():
    def broken(x, index):
        if len(index) > 1 and 3 in index.tolist():
            raise RuntimeError("mine")
        return x

    with pytest.raises(RuntimeError, match="mine"):
        fit(images(4), dataclasses.replace(TINY, iterations=100_000), degrade=broken)


def test_an_interruption_ends_all_workers(request):
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell started us behind itself
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    started = threading.Event()
    threading.Thread(target=lambda: (started.wait(), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fit(images(4), dataclasses.replace(TINY, iterations=100_000), callback=lambda p: started.set())
    assert threading.active_count() <= before


def test_running_out_of_memory_halves_the_chunks_of_all_workers():
    def greedy(x, index):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    with pytest.warns(UserWarning, match="out of memory: going on with chunks of"):
        result = fit(images(11), TINY, degrade=greedy)
    assert decibels(result.reconstruction, fit(images(11), TINY).reconstruction) > 60


def test_a_budget_of_one_image_leaves_one_worker():
    sizes = []
    fit(
        images(3),
        dataclasses.replace(TINY, memory_gb=0.0009, iterations=3),
        callback=lambda p: sizes.append(p.index.tolist()),
    )
    assert sizes == [[i] for i in range(3) for _ in range(3)]


def test_an_odd_number_of_images_leaves_no_empty_chunk():
    result = fit(images(3), dataclasses.replace(TINY, memory_gb=0.0018))  # two workers of one image each
    assert result.iterations.tolist() == [30, 30, 30]


def test_the_surroundings_are_left_as_found():
    with torch.no_grad():
        with torch.inference_mode():
            inside = fit(images(4), TINY).reconstruction
        assert torch.equal(inside, fit(images(4), TINY).reconstruction)
        assert not torch.is_grad_enabled()
    seen = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2, 2]


def test_a_fit_within_a_fit_and_fits_of_several_threads_draw_the_same_weights():
    alone = fit(images(2), TINY).reconstruction
    state, inner, outer = torch.get_rng_state(), [], []

    def loss(output, observed, index):
        inner.append(fit(images(2), dataclasses.replace(TINY, iterations=1)).reconstruction)
        return (output - observed).square().flatten(1).mean(1)

    def run():
        outer.append(fit(images(2), dataclasses.replace(TINY, iterations=3), loss=loss).reconstruction)

    workers = [threading.Thread(target=run) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert min(decibels(image, inner[0]) for image in inner) > 100
    assert min(decibels(image, outer[0]) for image in outer) > 100
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fit(images(2), TINY).reconstruction, alone)


@pytest.mark.parametrize(
    ("count", "most", "workers", "sizes"),
    [
        (5, 100, 2, [3, 2]),
        (5, 4, 2, [2, 1, 1, 1]),
        (1, 100, 1, [1]),
        (5, 1, 1, [1] * 5),
    ],
)
def test_images_are_divided_equally_and_within_memory(count, most, workers, sizes):
    found, chunks = plan_chunks(count, most, torch.device("cpu"))
    assert found == workers
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.cat(chunks).tolist() == list(range(count))


def test_chunks_of_a_compiled_network_have_one_size():
    for count, most in itertools.product(range(1, 40), range(1, 42)):
        workers, chunks = plan_chunks(count, most, torch.device("cpu"), compiled=True)
        (size,) = {len(chunk) for chunk in chunks}
        firsts = [int(chunk[0]) for chunk in chunks]  # which name a chunk in a checkpoint
        assert (workers, len(chunks)) == (1, -(-count // most))
        assert size <= most
        assert len(set(firsts)) == len(firsts)
        assert torch.cat(chunks).unique().tolist() == list(range(count))
        assert size * len(chunks) - count < len(chunks)  # so many images are fitted twice


def test_images_of_two_chunks_of_a_compiled_network_have_their_usual_results(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    sizes, smooth = [], torch.nn.functional.interpolate(images(5)[..., :4, :4], (16, 16), mode="bilinear")
    config = dataclasses.replace(TINY, iterations=60, stopping="emv", stopping_options={"patience": 10})
    tight = dataclasses.replace(config, compile=True, memory_gb=0.0027)
    result = fit(smooth, tight, callback=lambda p: sizes.append(p.index.tolist()))
    assert {*map(tuple, sizes)} == {(0, 1, 2), (2, 3, 4)}
    usual = fit(smooth, config)
    assert result.chosen.tolist() == usual.chosen.tolist()
    assert decibels(result.reconstruction, usual.reconstruction) > 60


def test_results_keep_the_order_of_the_items_and_torch_its_threads():
    def work(item: int) -> tuple[int, int]:
        time.sleep(0.02 * (3 - item))
        return item, torch.get_num_threads()

    assert map_in_threads(work, [0, 1, 2], 2) == [(0, 1), (1, 1), (2, 1)]
    assert map_in_threads(work, [0, 1], 1) == [(0, 2), (1, 2)]
    assert torch.get_num_threads() == 2


def test_an_error_of_an_item_is_raised_and_the_rest_never_begin():
    begun, told = [], threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise LookupError("mine")
        assert told.wait(30)

    with pytest.raises(LookupError, match="mine"):
        map_in_threads(work, list(range(100)), 2, on_end=told.set)
    assert len(begun) < 100
    assert torch.get_num_threads() == 2


def test_only_errors_that_mean_it_count_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("any"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_the_budget_without_a_number_is_that_of_the_device(monkeypatch):
    """Of CUDA's 16 GiB others hold 4; torch keeps 8, of which 3 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 8 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 2**30)
    assert memory_budget(None, torch.device("cuda:1")) == pytest.approx(0.6 * 9)
    assert memory_budget(None, torch.device("cpu")) == memory_budget(None, torch.device("mps")) == 1
    for device in ("cpu", "cuda"):
        assert memory_budget(0.25, torch.device(device)) == 0.25


def test_a_fit_divides_its_images_by_the_budget_of_its_device(monkeypatch):
    torch.set_num_threads(1)
    for budget, expected in ((1.0, [3]), (0.0009, [1, 1, 1])):
        monkeypatch.setattr(workers, "USUAL_GB", budget)
        sizes = []
        fit(
            images(3),
            dataclasses.replace(TINY, iterations=1),
            callback=lambda p, sizes=sizes: sizes.append(len(p.index)),
        )
        assert sizes == expected
