"""The layering of the three packages and the rules of style that a parser can see (STYLE, 1, 2 and 8)."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dipdefense", "attacks", "eval")
MODULES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CLI = "dipdefense/cli/"
ADAPTERS = "dipdefense/adapters/"  # the core imports none of them, so that each may import its own library
CLI_LIBRARIES = {"typer", "rich"}
# The rooms of `dipdefense`, from the lowest layer up: a room imports those of lower layers only, when it is loaded.
LAYERS = (
    {"arguments", "digest", "image_tensors", "whole_file"},
    {"tiles"},
    {"stopping", "filters"},
    {"fitting"},
    {"defence", "restoration"},
    {"check", "files", "adapters"},
    {"distributed"},
    {"cli"},
    {"__main__"},
)
LINES, MODULES_OF_A_FOLDER, BODY = 400, 15, 60  # at most
# What the core may need at import time.
AT_IMPORT = {"dipdefense", "torch", "torchvision", "numpy", "PIL", "safetensors"} | sys.stdlib_module_names


def imports(node: ast.AST, deferred: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(top-level package, line, whether it runs only when called) of every absolute import below a node."""
    if isinstance(node, ast.Import):
        yield from ((alias.name.partition(".")[0], node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0], node.lineno, deferred
    elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
        names = (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))
        yield from ((str(name).partition(".")[0], node.lineno, deferred) for name in names)
    deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, deferred)


def called(node: ast.Call) -> str:
    """Last name of what is called: `f` of both `f()` and `module.f()`."""
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def import_faults(tree: ast.Module, module: str) -> Iterator[str]:
    """Imports against the layering dipdefense <- attacks <- eval, or of a library that is not the core's."""
    package = module.partition("/")[0]
    for name, line, deferred in imports(tree):
        fault = f"{module}:{line}: imports {name}"
        if package == "dipdefense" and name in {"attacks", "eval"}:
            if not module.startswith(CLI) or not deferred:
                yield fault
        elif package == "attacks" and name == "dipdefense":
            if not module.startswith("attacks/adaptive/"):
                yield f"{fault} outside attacks/adaptive/"
        elif package == "attacks" and name == "eval":
            yield fault
        elif name in CLI_LIBRARIES:
            if not module.startswith(CLI):
                yield f"{fault} outside {CLI}"
        elif package == "dipdefense" and not deferred and name not in AT_IMPORT and not module.startswith(ADAPTERS):
            yield f"{fault} at module level"


def style_faults(tree: ast.Module, module: str) -> Iterator[str]:
    """Vague names, a missing __all__, printing, and handlers that catch everything."""
    vague = {"utils", "common", "helpers"} & set(module.removesuffix(".py").split("/"))
    yield from (f"{module}: is called {name}" for name in vague)
    if not any(defines(statement, "__all__") for statement in tree.body):
        yield f"{module}: has no __all__"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if not module.startswith(CLI):
                yield f"{module}:{node.lineno}: prints"
        elif isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            for kind in kinds:
                name = kind.attr if isinstance(kind, ast.Attribute) else getattr(kind, "id", None)
                if kind is None or name in {"Exception", "BaseException"}:
                    yield f"{module}:{node.lineno}: catches {name or 'everything'}"


def room_faults(tree: ast.Module, module: str) -> Iterator[str]:
    """Imports of a room of `dipdefense` that lies no lower than the module's own."""
    package, *inner = module.removesuffix(".py").split("/")
    if package != "dipdefense" or inner[0] == "__init__":
        return
    level = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
    for name, line, deferred in imported(tree):
        room = name.split(".")[1] if name.startswith("dipdefense.") else inner[0]
        if room != inner[0] and not deferred and level[room] >= level[inner[0]]:
            yield f"{module}:{line}: {inner[0]} imports {room}"


def size_faults(tree: ast.Module, module: str, lines: int) -> Iterator[str]:
    """A module or the body of a function that is too long; a docstring and arguments do not count."""
    if lines > LINES:
        yield f"{module}: has {lines} lines, {LINES} at most"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            if body and (length := body[-1].end_lineno - body[0].lineno + 1) > BODY:
                yield f"{module}:{node.lineno}: {node.name} has {length} lines, {BODY} at most"


def imported(node: ast.AST, deferred: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it runs only when called) of every `from module import ...` below a node."""
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        inner = [f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")]
        yield from ((name, node.lineno, deferred) for name in inner or [node.module])
    deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imported(child, deferred)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of the three packages, not a name in one."""
    return f"{name.replace('.', '/')}.py" in MODULES


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first found; none where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def defines(statement: ast.stmt, name: str) -> bool:
    """Whether a statement assigns to a plain name."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def faults(source: str, module: str) -> list[str]:
    """Everything wrong with a module, given its source and its path from the root."""
    tree = ast.parse(source, module)
    return [
        *import_faults(tree, module),
        *style_faults(tree, module),
        *room_faults(tree, module),
        *size_faults(tree, module, source.count("\n")),
    ]


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_rules(module):
    found = faults((ROOT / module).read_text(encoding="utf-8"), module)
    assert not found, "\n".join(found)


def test_all_packages_were_looked_at():
    assert {module.partition("/")[0] for module in MODULES} == set(PACKAGES)
    rooms = {module.split("/")[1].removesuffix(".py") for module in MODULES if module.startswith("dipdefense/")}
    assert rooms - {"__init__"} == set().union(*LAYERS)


def test_modules_do_not_import_each_other_in_a_circle():
    names = {module.removesuffix(".py").removesuffix("/__init__").replace("/", "."): module for module in MODULES}
    graph = {
        name: {other for other, _, deferred in imported(ast.parse((ROOT / module).read_text("utf-8"))) if not deferred}
        for name, module in names.items()
    }
    assert not cycle({name: others & names.keys() for name, others in graph.items()})
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_no_folder_is_crowded():
    folders = Counter(Path(module).parent for module in MODULES if not module.endswith("__init__.py"))
    assert {str(folder): n for folder, n in folders.items() if n > MODULES_OF_A_FOLDER} == {}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("dipdefense/fitting/fit.py", "import attacks", "imports attacks"),
        ("dipdefense/fitting/fit.py", "import numpy, eval.metrics", "imports eval"),
        ("dipdefense/fitting/fit.py", "def f():\n    from eval.metrics import psnr", "fit.py:2: imports eval"),
        ("dipdefense/fitting/fit.py", "import importlib\nimportlib.import_module('eval.runs')", "imports eval"),
        ("dipdefense/adapters/art.py", "def f():\n    import attacks", "imports attacks"),
        ("dipdefense/cli/main.py", "import eval", "imports eval"),
        ("dipdefense/cli/main.py", "if True:\n    from attacks import pgd", "imports attacks"),
        ("dipdefense/cli/main.py", "class C:\n    from attacks import pgd", "imports attacks"),
        ("attacks/pgd.py", "def f():\n    import dipdefense", "imports dipdefense outside attacks/adaptive/"),
        ("attacks/pgd.py", "from dipdefense.fitting.fit import fit", "imports dipdefense outside attacks/adaptive/"),
        ("attacks/adaptive/bpda.py", "def f():\n    import eval", "imports eval"),
        ("dipdefense/fitting/fit.py", "import scipy.ndimage", "imports scipy at module level"),
        ("dipdefense/fitting/fit.py", "try:\n    import art\nexcept ImportError:\n    art = None", "imports art"),
        ("dipdefense/fitting/fit.py", "from rich.progress import track", "imports rich outside dipdefense/cli/"),
        ("eval/report.py", "def f():\n    import typer", "imports typer outside dipdefense/cli/"),
        ("dipdefense/fitting/fit.py", "from dipdefense.defence.evidence import spread", "fitting imports defence"),
        (
            "dipdefense/defence/gradients.py",
            "from dipdefense.restoration import jpeg",
            "defence imports restoration",
        ),
        ("eval/metrics.py", "x = 1\n" * 401, "has 401 lines, 400 at most"),
        ("eval/metrics.py", "def f(\n    x\n):\n" + "    x = 1\n" * 61, "metrics.py:1: f has 61 lines, 60 at most"),
        ("eval/utils.py", "", "is called utils"),
        ("eval/common/tables.py", "", "is called common"),
        ("attacks/helpers.py", "", "is called helpers"),
        ("eval/metrics.py", "all = []", "has no __all__"),
        ("eval/metrics.py", "def f():\n    __all__ = []", "has no __all__"),
        ("eval/metrics.py", "def f():\n    print('x')", "metrics.py:2: prints"),
        ("eval/metrics.py", "try:\n    pass\nexcept:\n    pass", "catches everything"),
        ("eval/metrics.py", "try:\n    pass\nexcept Exception:\n    pass", "catches Exception"),
        (
            "eval/metrics.py",
            "try:\n    pass\nexcept (OSError, BaseException):\n    pass",
            "catches BaseException",
        ),
    ],
)
def test_a_fault_is_reported(module, source, fault):
    assert any(fault in found for found in faults(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dipdefense/cli/main.py", "import rich, typer\ndef f():\n    from eval import report\n    print(report)"),
        (
            "dipdefense/fitting/fit.py",
            "import math, torch, dipdefense.config\nfrom . import stopping\nfrom PIL import Image",
        ),
        (
            "dipdefense/defence/gradients.py",
            "from dipdefense.fitting.fit import fit\ndef f():\n    from dipdefense.check import x",
        ),
        ("eval/metrics.py", 'def f():\n    """One\n' + "    line\n" * 70 + '    """\n' + "    x = 1\n" * 60),
        ("dipdefense/adapters/art.py", "import art\ndef f():\n    import art.attacks"),
        ("attacks/adaptive/bpda.py", "import torchattacks\nfrom dipdefense import fit"),
        ("eval/benchmark.py", "import pandas\nimport attacks\nfrom dipdefense import fit"),
        ("eval/records.py", "try:\n    pass\nexcept (OSError, ValueError):\n    pass\nx.print()"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert faults(f"__all__: list[str] = []\n{source}", module) == []


def test_importing_the_core_imports_no_extra():
    """The core alone must load, in a fresh interpreter, without the extras, the command line or the rest."""
    code = "import sys, dipdefense; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    extras = {
        "pandas",
        "scipy",
        "skimage",
        "sklearn",
        "matplotlib",
        "torchattacks",
        "torchmetrics",
        "timm",
        "art",
        "transformers",
        "foolbox",
        "secmlt",
        "ray",
        "pyarrow",
    }
    assert not set(run.stdout.split()) & (extras | CLI_LIBRARIES | {"attacks", "eval"})
