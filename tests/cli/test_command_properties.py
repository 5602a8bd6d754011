"""Command lines of any options and values: work begins, or they are refused, never with a traceback.

The commands and options are those of the application itself, so a new one is drawn too. What keeps a tensor for a
gradient ends a command: its options are then accepted, and work began.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dipdefense.cli import app, main
from dipdefense.cli.main import EVERYWHERE
from eval.fits.speed import MATMUL_SIDE

CLASSIFIER = """
import torch
from torch import nn

class Few(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.linspace(-1, 1, 40).reshape(10, 4))

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1) @ self.weight.T

def build():
    return Few()
"""


class Begun(BaseException):
    """Work began: the options are accepted."""


def begun(*arguments: Any, **keywords: Any) -> Any:
    raise Begun


FIT = {"architecture_options": {"channels": [4], "skip_channels": 0}, "input_channels": 2, "iterations": 2}
# What an option is where none is drawn, so that a command is quick, or begins at all.
QUICK = {
    "--classifier": "net.py:build",
    "--config": "fit.json",
    "--crop": "8",
    "--data": "folder",
    "--images": "cheap=2,gradient=2,unrolled=2,queries=2",
    "--layer": "first",
    "--n": "2",
    "--out": "run",
    "--resize": "8",
}
UNLESS = {"--config": ("--published", "--tv"), "--data": ("--dataset", "--noisy")}
FURTHER = {("evaluate",): [[], ["--device", "ray"]], ("purify",): [[], ["--engine", "ray"]]}
NUMBERS = ["1", "2", "-1", "0", "8", "0.5", "nan", "inf", "1e400", "99999999999999999999", "many", ""]
PLACES = [
    "a.png",
    "grey.png",
    "torn.png",
    "out.png",
    "folder",
    "out",
    "missing/out.png",
    "fit.json",
    "other.json",
    "net.py",
]
TEXTS = [
    "8/255",
    "1/0",
    "0.1",
    ":",
    "1:",
    "-1:",
    "8:4",
    "a,b",
    ",",
    "net.py:build",
    "net.py:none",
    "3,8,8",
    "cpu",
    "tpu",
]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names, command) of all that is no group of others."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


odd = st.text(st.characters(exclude_characters="./~\0"), max_size=3)  # never a place outside the folder


def values(path: tuple[str, ...], option: Any) -> st.SearchStrategy[str]:
    """Texts for an option: numbers, or places and the words of its help, which name what it takes."""
    if get_type_hints(COMMANDS[path].callback)[option.name] in (int, float, int | None, float | None):
        return st.sampled_from(NUMBERS)
    words = re.findall(r"\w[\w:./]*", option.help or "")
    return st.sampled_from(words or TEXTS) | st.sampled_from([*TEXTS, *NUMBERS, *PLACES]) | odd


@st.composite
def command_lines(draw: st.DrawFn, path: tuple[str, ...]) -> list[str]:
    """A command with up to three drawn options, and what is quick for those that it asks for and some others."""
    parameters = COMMANDS[path].params
    options = {option.opts[0]: option for option in parameters if option.param_type_name == "option"}
    line = [
        *path,
        *draw(st.sampled_from(FURTHER.get(path, [[]]))),
        *draw(st.lists(st.sampled_from(EVERYWHERE), max_size=1)),
    ]
    for name in draw(st.lists(st.sampled_from(sorted(options.keys() - set(line))), max_size=3, unique=True)):
        flags = [*options[name].opts, *options[name].secondary_opts]
        line += [draw(st.sampled_from(flags))] if options[name].is_flag else [name, draw(values(path, options[name]))]
    there = {*line} | ({"--dataset"} & options.keys())
    for name in [name for name in QUICK if name in options and name not in line]:
        if options[name].required or not there & set(UNLESS.get(name, ())):
            line += [name, QUICK[name]]
    places = [parameter.name for parameter in parameters if parameter not in options.values()]
    known = {"target": "out.png", "spec": "net.py:build", "run": "folder"}
    return line + [draw(st.just(known.get(name, "a.png")) | st.sampled_from(PLACES)) for name in places]


def lay_out(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (folder / "folder").mkdir()
    for name in ("a.png", "b.png", "folder/a.png", "folder/b.png"):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "net.py").write_text(CLASSIFIER)
    (folder / "fit.json").write_text(json.dumps(FIT))
    (folder / "other.json").write_text(json.dumps(FIT | {"stopping": "wmv", "iterations": 100}))


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No network, no Ray, no classifier that an earlier run trained, and no endless queries of a classifier."""
    pool, calls = torch.nn.functional.adaptive_avg_pool2d, iter(range(200))

    def few(*arguments: Any, **keywords: Any) -> Any:
        return begun() if next(calls, None) is None else pool(*arguments, **keywords)

    def offline(*arguments: Any, **keywords: Any) -> None:
        raise OSError("no network")

    patch.setattr("torch.nn.functional.adaptive_avg_pool2d", few)
    patch.setattr("torch.compile", begun)
    patch.setitem(MATMUL_SIDE, "cpu", 8)
    patch.setattr("socket.create_connection", offline)
    patch.setitem(sys.modules, "ray", None)
    patch.setenv("DIPDEFENSE_CACHE", str(folder / "cache"))
    patch.chdir(folder)


def run(arguments: list[str]) -> tuple[int | None, str]:
    """Exit code, None where work began, and what stands on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        lay_out(Path(folder))
        isolate(patch, Path(folder))
        patch.setattr(sys, "argv", ["dipdefense", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with torch.autograd.graph.saved_tensors_hooks(begun, begun):  # what a gradient will need
                    main()
            except SystemExit as end:
                return int(end.code or 0), err.getvalue()
            except Begun:
                return None, err.getvalue()
    raise AssertionError("the command must end by sys.exit")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@settings(max_examples=settings().max_examples // 3)
@given(drawn=st.data())
def test_a_command_line_is_taken_or_refused(path, drawn):
    arguments = drawn.draw(command_lines(path))
    with torch.random.fork_rng():
        code, err = run(arguments)
    assert "Traceback" not in err
    assert code in (None, 0, 1, 2)
    if code == 1:
        assert all(line.startswith(("error: ", "left out: ")) for line in err.splitlines())
        assert sum(line.startswith("error: ") for line in err.splitlines()) <= 1
