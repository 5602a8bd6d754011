"""Records survive a kill; a folder holds one configuration, and says how another differs."""

import json

import pytest

from eval.records import Run, append_records, made_with, read_records, write_whole


def test_round_trip_and_torn_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"a": 1}, {"a": None}])
    with path.open("a") as file:
        file.write('{"a": 3')  # a kill in the middle of a line
    assert read_records(path) == [{"a": 1}, {"a": None}]
    append_records(path, [{"a": 4}])
    assert read_records(path) == [{"a": 1}, {"a": None}, {"a": 4}]


@pytest.mark.parametrize("line", ["{", "[1]", "\xff"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("latin-1") + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2 must be a JSON object; move the file away"):
        read_records(path)


def test_records_refuse_what_json_has_not(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_records(tmp_path / "records.jsonl", [{"a": float("inf")}])


def test_write_whole_replaces(tmp_path):
    write_whole(tmp_path / "t", "old")
    write_whole(tmp_path / "t", "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_run_names_what_is_missing_and_passes_over_other_numbers(tmp_path):
    heads = [{"config": "a", "index": i, "other": "o"} for i in range(3)]
    run = Run(tmp_path / "new" / "run", ("config", "index"), {"eps": 0.1})
    assert run.missing(heads) == heads
    assert not run.folder.exists()
    run.begin()
    run.add([head | {"score": 0.5} for head in heads[:2]])
    run.add([{"elsewhere": True}])
    again = Run(tmp_path / "new" / "run", ("config", "index"), {"eps": 0.1})
    for held in (run, again):
        assert held.missing(heads) == heads[2:]
        assert held.missing([heads[0] | {"config": "b"}])
        assert held.records(iter(heads[1::-1])) == [heads[1] | {"score": 0.5}, heads[0] | {"score": 0.5}]
    again.add([heads[0] | {"score": 0.7}])
    assert Run(again.folder, again.key, {"eps": 0.1}).records(heads[:1]) == [heads[0] | {"score": 0.7}]
    assert len(read_records(again.folder / "records.jsonl")) == 4


def test_a_run_is_unfinished_from_begin_to_end(tmp_path):
    run, mark = Run(tmp_path / "run", ("config",), {"eps": 0.1}), tmp_path / "run" / "unfinished"
    for _ in range(2):
        run.begin()
        assert mark.read_text().startswith("This run is not finished: the same command again")
        run.end()
        assert not mark.exists()


FIRST = {
    "run": "a",
    "eps": 8 / 255,
    "fit": {"lr": 0.1, "channels": (8, 8)},
    "attacks": ["pgd"],
    "methods": {"x": {"n": 1}},
}


def start(folder, description, **options):
    run = Run(folder, ("config",), description, free=("attacks",), grows=("methods",), **options)
    run.begin()
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": 16 / 255}, "eps 0.0313725 where this one has 0.0627451"),
        ({"eps": 8 / 255 + 1e-12}, "eps 0.03137254901960784 where this one has 0.03137254902060784"),
        ({"run": "b"}, "run a where this one has b"),
        ({"fit": {"lr": 0.2, "channels": [8, 8]}}, "fit.lr 0.1 where this one has 0.2"),
        ({"fit": {"lr": 0.1, "channels": [8, 4]}}, r"fit.channels \[8, 8\] where this one has \[8, 4\]"),
        ({"fit": {"channels": [8, 8]}}, "fit.lr 0.1 where this one has none"),
        ({"more": None}, "more missing where this one has null"),
        ({"methods": {"x": {"n": 2}}}, "methods.x.n 1 where this one has 2"),
        ({"more": 1, "run": "b", "eps": 1, "fit": 3}, "run a .*, eps .*, fit .*, and 1 more"),
        ({"run": "b" * 99}, r"run a where this one has b{57}\.\.\."),
    ],
)
def test_another_configuration_is_refused_by_what_differs(tmp_path, changed, message):
    start(tmp_path, FIRST)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=f"out {tmp_path} holds a run with {message}: name another folder"):
        start(tmp_path, FIRST | changed)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_of_other_code_is_refused_in_plain_words_whatever_else_differs(tmp_path):
    start(tmp_path, FIRST | {"code": "a1"})
    said = (
        f"^out {tmp_path} holds a run that was made before the code changed, and results of both must not be mixed: "
        r"name another folder with --out, or delete this one \(code a1, now b2\)$"
    )
    with pytest.raises(ValueError, match=said):
        start(tmp_path, FIRST | {"code": "b2", "eps": 1})


def test_a_run_may_grow_and_keeps_what_was_added(tmp_path):
    start(tmp_path, FIRST)
    assert start(tmp_path, FIRST) == json.loads(json.dumps(FIRST))
    more = start(tmp_path, FIRST | {"attacks": ["fgsm"], "methods": {"y": {"n": 5}}})
    assert (more["attacks"], more["methods"]) == (["fgsm"], {"x": {"n": 1}, "y": {"n": 5}})
    with pytest.raises(ValueError, match=r"methods\.x\.n 1 where this one has 3"):  # of two starts ago
        start(tmp_path, FIRST | {"methods": {"x": {"n": 3}}})


def test_records_that_nothing_describes_are_refused(tmp_path):
    append_records(tmp_path / "records.jsonl", [{"config": 1}])
    with pytest.raises(ValueError, match=r"holds records but no config\.json that describes them: name another folder"):
        start(tmp_path, FIRST)
    for content in (b"{", b"[1]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json must be a JSON object: name another folder for this run"):
            start(tmp_path, FIRST)


def test_other_answers_are_refused(tmp_path):
    def answers(*logits):
        return {"tolerance": 1e-3, "logits": [list(logits)]}

    start(tmp_path, FIRST, probes={"classifier": answers(0.0, 10.0)})
    start(tmp_path, FIRST, probes={"classifier": answers(0.0099, 10.0), "source": answers(1.0, 2.0)})
    for name, given, said in (
        (
            "classifier",
            answers(0.02, 10.0),
            "whose logits differ from this one's by up to 0.02, in a range of 10",
        ),
        ("classifier", answers(0.0, 10.0, 3.0), r"whose logits are of shape \(1, 2\) where this one's are of \(1, 3\)"),
        ("classifier", None, "as the logits of one of the two change from call to call"),
        ("source", answers(2.0, 1.0), r"whose logits differ from this one's by up to .* range of 1"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with another {name}, {said}.*: name another folder"):
            start(tmp_path, FIRST, probes={name: given})
    (tmp_path / "probe.json").unlink()
    with pytest.raises(
        ValueError, match=r"must hold probe\.json, which identifies its classifier: name another folder"
    ):
        start(tmp_path, FIRST, probes={"classifier": answers(0.0, 10.0)})


def test_what_a_run_was_made_with():
    assert made_with("no-such-package")["versions"]["no-such-package"] is None
    made = made_with("torch")
    assert list(made["versions"]) == ["python", "torch"]
    assert len(made["code"]) == 16


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"out must be a folder, .*file is a file: name another one"):
        start(tmp_path / "file", FIRST)
