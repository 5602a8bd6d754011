"""The notebook of docs/examples: public names alone, outputs of one run that name no folder, and claims that hold.

Its code cells are joined into a script and executed in order, in one namespace. nbclient would execute the same
code, but needs its packages and a kernel that opens ports. No cell has a magic, so each is plain Python.
"""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "examples" / "attack_defend_certify.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text("utf-8"))
CODE = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]
PRINTED = "".join("".join(output["text"]) for output in OUTPUTS if output["output_type"] == "stream")
FOLDER = r"(?<![\w.<:/])/\w[\w.-]*/|[A-Z]:\\|file://"  # the start of an absolute path
OURS = ("attacks", "dipdefense", "eval")
NUMBER = r"[+-]?\d+(?:\.\d+)?"

DUMP = """
import json
from pathlib import Path
figures = {
    "right": {name: {kind: who.tolist() for kind, who in kinds.items()} for name, kinds in right.items()},
    "along": {kind: who.double().mean(1).tolist() for kind, who in along.items()},
    "stop": stop,
    "left": left.tolist(),
    "certified": [int((~certificate.abstained).sum()) for certificate in certificates.values()],
    "contradicted": int(contradicted.sum()),
    "flagged": {kind: who.double().mean().item() for kind, who in flagged.items()},
}
Path("figures.json").write_text(json.dumps(figures), encoding="utf-8")
"""


def source(cell: dict[str, list[str]]) -> str:
    return "".join(cell["source"])


def code() -> str:
    return "\n\n".join(map(source, CODE)) + "\n"


def test_the_cells_use_public_names_alone():
    tree = ast.parse(code())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, alias.name) for node in imports for alias in node.names if node.module.split(".")[0] in OURS]
    assert len(ours) > 5
    assert [(module, name) for module, name in ours if name not in import_module(module).__all__] == []
    package = import_module("dipdefense")
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_package(node.value)}
    assert used
    assert used <= set(package.__all__)
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert private == []


def _is_package(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "dipdefense"


def test_the_outputs_are_of_one_run_in_order_without_errors():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output["output_type"] for output in OUTPUTS} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in OUTPUTS if output["output_type"] == "stream"} == {"stdout"}
    plots = [output for output in OUTPUTS if "image/png" in output.get("data", {})]
    assert len(plots) >= 6
    assert NOTEBOOK.stat().st_size < 400_000  # bytes, so that it may be kept in the repository


def test_no_output_names_a_folder_or_a_machine():
    assert CONTENT["metadata"]["kernelspec"]["name"] == "python3"
    assert CONTENT["metadata"].keys() == {"kernelspec", "language_info"}
    texts = [
        "".join(text) for output in OUTPUTS for kind, text in output.get("data", {}).items() if kind != "image/png"
    ]
    assert len(texts) > 3
    for text in (PRINTED, *texts, code()):
        assert not re.search(FOLDER, text)


@pytest.mark.parametrize("path", ["in /usr/lib", "C:\\Users", "'/home/someone/x.py'", "file:///x"])
def test_an_absolute_path_is_found(path):
    assert re.search(FOLDER, path)


def test_links_lead_to_pages():
    links = [link for cell in CONTENT["cells"] for link in re.findall(r"\]\(([^)\s]+)\)", source(cell))]
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link.partition("#")[0]).is_file(), link


@pytest.mark.slow
def test_what_it_claims_is_so(tmp_path):
    figures, printed = run(tmp_path)
    right = {
        name: {kind: sum(who) / len(who) for kind, who in kinds.items()} for name, kinds in figures["right"].items()
    }
    bare, prior = right["no defence"], right["deep image prior"]
    assert bare["clean"] > 0.9
    assert bare["PGD"] < 0.1  # the attacks work where there is no defence
    assert bare["momentum PGD"] < 0.1
    assert prior["clean"] > 0.85
    assert prior["PGD"] > bare["PGD"] + 0.4
    assert prior["momentum PGD"] > bare["momentum PGD"] + 0.2

    attacked = figures["along"]["momentum PGD"]
    assert attacked[figures["stop"]] > max(attacked[0], attacked[-1]) + 0.2  # blurred, right, fooled again
    assert figures["along"]["clean"][-1] > 0.9

    same = figures["right"]["deep image prior"]["momentum PGD"][: len(figures["left"])]
    assert sum(figures["left"]) < sum(same)  # of the same digits, whoever knows the defence leaves fewer
    assert min(figures["certified"]) > 0
    assert figures["contradicted"] == 0
    assert figures["flagged"]["PGD"] > figures["flagged"]["clean"] + 0.3
    assert figures["flagged"]["PGD"] > figures["flagged"]["through the defence"] + 0.3

    assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", PRINTED)  # the stored outputs are those of this code
    pairs = zip(re.findall(NUMBER, printed), re.findall(NUMBER, PRINTED), strict=True)
    assert max(abs(float(now) - float(stored)) for now, stored in pairs) < 25  # in points; processors round otherwise


def run(folder: Path) -> tuple[dict[str, dict[str, dict[str, list[bool]]]], str]:
    """Figures of the notebook and what it prints; a warning, or four minutes of a slow processor, fails it."""
    script = folder / "notebook.py"
    script.write_text(code() + DUMP, encoding="utf-8")
    before = _seconds()
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=580,  # of a shared machine
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert _seconds() - before < 240
    return json.loads((folder / "figures.json").read_text("utf-8")), result.stdout


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
