"""The documentation: its Python runs, its commands and options exist, its links lead somewhere."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import attacks
import attacks.adaptive
import dipdefense
from dipdefense.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
}
ELSEWHERE = {  # run there
    "README.md": "test_readme.py",
    "docs/interoperability.md": "adapters/test_interoperability.py",
    "docs/reports.md": "eval/report/test_report.py",
    "docs/scale.md": "distributed/test_ray.py",
}
COMMAND: Any = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__base__  # a missing argument, a number that is none


@dataclass(frozen=True)
class Block:
    """A fenced block, or an indented one, whose language is empty."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        start = number
        fence = re.fullmatch(r"```(\w*)", lines[start])
        if fence:
            number = lines.index("```", start + 1) + 1
            mark = re.fullmatch(r"<!-- not run: (.+) -->", lines[start - 1])
            inside = "\n".join(lines[start + 1 : number - 1])
            yield Block(page, start + 1, fence[1] or "none", inside, mark and mark[1])
        elif lines[start].startswith("    ") and not lines[start - 1].strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            yield Block(page, start + 1, "", "\n".join(line[4:] for line in lines[start:number]), None)
        else:
            number += 1


BLOCKS = [block for page, text in PAGES.items() for block in blocks(page, text)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN = {block.page: [b for b in PYTHON if b.page == block.page] for block in PYTHON if not block.reason}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_python_that_runs_or_says_what_it_is(block):
    assert block.language in ("", "python", "text")
    if block.language != "python":  # commands, formulas, output
        assert block.reason is None
        assert not re.search(
            r"^\s*(import \w|from [\w.]+ import |def \w|class \w|print\()", block.text, flags=re.MULTILINE
        )
    else:
        compile(block.text, str(block), "exec")


def test_no_link_stands_in_a_block():
    assert [str(block) for block in BLOCKS if re.search(r"\]\([\w./-]+\.md", block.text)] == []


@pytest.mark.parametrize("page", RUN)
def test_python_runs(page, tmp_path, monkeypatch):
    if page in ELSEWHERE:
        assert page.removeprefix("docs/") in (ROOT / "tests" / ELSEWHERE[page]).read_text("utf-8")
        return
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in RUN[page]:
            if not block.reason:
                exec(compile(block.text, str(block), "exec"), names)


def command_lines(text: str) -> list[str]:
    """The calls of `dipdefense` in a block, as a shell would read them."""
    whole = text.replace("\\\n", "")
    return [call for line in whole.splitlines() for call in re.findall(r"(?:^|&& )(dipdefense .*)", line)]


def complaint(call: str, *, whole: bool = True) -> str | None:
    """What the command would say of this call, which is not run; of a part of one, its names and options alone."""
    words = shlex.split(call, comments=True)[1:]
    command = COMMAND
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in options(command):
            return f"no option {word}"
    if whole and "(as" not in words:
        try:
            command.make_context(command.name, words)
        except UsageError as error:
            return error.format_message()
    return None


def options(command: Any) -> set[str]:
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own.union({"--help"}, *map(options, getattr(command, "commands", {}).values()))


CALLS = [(str(block), call, True) for block in BLOCKS for call in command_lines(block.text)]
PROSE = {
    page: re.sub(r"^(```.*?^```|    .*?)$", "", text, flags=re.DOTALL | re.MULTILINE) for page, text in PAGES.items()
}
SPANS = [(page, " ".join(span.split())) for page, text in PROSE.items() for span in re.findall(r"`([^`]+)`", text)]
CALLS += [(page, span, False) for page, span in SPANS if span.startswith("dipdefense ")]


def test_commands_are_found():
    assert {"README.md", "docs/quick-start.md", "docs/results.md"} <= {where.partition(":")[0] for where, _, _ in CALLS}
    assert len({call for _, call, whole in CALLS if whole}) > 30


@pytest.mark.parametrize(("where", "call", "whole"), CALLS, ids=[where for where, _, _ in CALLS])
def test_commands_and_their_options_exist(where, call, whole):
    assert complaint(call, whole=whole) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("dipdefense nope", "no command nope"),
        ("dipdefense benchmark nope", "no command nope"),
        ("dipdefense demo --nope 3", "no option --nope"),
        ("dipdefense evaluate (as above) --nope", "no option --nope"),
        ("dipdefense evaluate --n many", "'--n'"),
        ("dipdefense purify only.png", "OUTPUT"),
    ],
)
def test_a_wrong_call_is_told(call, said):
    assert said in str(complaint(call))


def test_options_in_the_text_exist():
    named = {(page, span.split()[0]) for page, span in SPANS if span.startswith("--")}
    assert named
    assert {(page, option) for page, option in named if option not in options(COMMAND)} == set()


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted(page for page in PAGES if re.search(r"\bDATA\b", PAGES[page])))
def test_data_is_explained_where_a_command_needs_it(page):
    explained = "### The folder DATA" if page == "docs/file-formats.md" else "file-formats.md#the-folder-data"
    assert explained in PAGES[page]


def leaves(command: Any, name: str = "dipdefense") -> dict[str, Any]:
    """The commands under a group by their full names."""
    inside = getattr(command, "commands", None)
    if inside is None:
        return {name: command}
    return {full: leaf for word, below in inside.items() for full, leaf in leaves(below, f"{name} {word}").items()}


def test_every_command_has_its_row_as_its_help_has_it():
    rows = re.findall(r"^\| `(dipdefense [^`]+)` \| (.+) \| `(.+)` \|$", PAGES["docs/commands.md"], flags=re.MULTILINE)
    said = [
        (name, " ".join(leaf.help.partition("\n\n")[0].split()), leaf.epilog.removeprefix("Example: "))
        for name, leaf in leaves(COMMAND).items()
    ]
    assert sorted(rows) == sorted(said)


def test_every_public_name_is_in_the_api_reference():
    import eval as evaluation

    listed = re.findall(r"^::: ([\w.]+)$", PAGES["docs/api.md"], flags=re.MULTILINE)
    public = {f"{module.__name__}.{name}" for module in (dipdefense, attacks, evaluation) for name in module.__all__}
    assert public <= set(listed)
    assert len(listed) == len(set(listed))


def test_the_citation_names_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version = {{{version}}}" in PAGES["docs/cite.md"]


def test_the_glossary_is_in_order_and_names_no_term_twice():
    terms = re.findall(r"^\| (?!term |---)(.+?) \|", PAGES["docs/glossary.md"], flags=re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(set(terms), key=str.lower)


def sections_with_figures(page: str) -> set[str]:
    """The anchors of the sections that hold a table with a figure, a number with a decimal point."""
    found, heading = set(), ""
    for line in re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE).splitlines():
        title = re.match(r"#+ (.+)", line)
        heading = title[1] if title else heading
        if re.match(r"\s*\|.*\d\.\d", line):
            found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize(
    "page",
    sorted(
        {path for path in re.findall(r"\]\(([\w-]+\.md)", PAGES["docs/tables.md"])} - {"README.md"},
    ),
)
def test_all_tables_of_results_are_listed(page):
    listed = set(re.findall(rf"\]\({re.escape(page)}#([\w-]+)\)", PAGES["docs/tables.md"]))
    settings = {"the-benchmark", "what-the-tasks-do"}  # their tables hold no results
    assert sections_with_figures(f"docs/{page}") - settings <= listed
