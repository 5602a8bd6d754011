"""Records survive a kill; hashes name configurations."""

import pytest

from dipdefense.digest import configuration_hash
from eval.records import Run, append_records, read_records, write_whole


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


def test_hash_ignores_order_alone():
    assert configuration_hash({"a": 1, "b": 2}) == configuration_hash({"b": 2, "a": 1})
    assert configuration_hash({"a": 1}) != configuration_hash({"a": 2})


def test_write_whole_replaces(tmp_path):
    write_whole(tmp_path / "t", "old")
    write_whole(tmp_path / "t", "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_run_names_what_is_missing_and_passes_over_other_numbers(tmp_path):
    heads = [{"config": "a", "index": i, "other": "o"} for i in range(3)]
    run = Run(tmp_path / "new" / "run", ("config", "index"))
    assert run.missing(heads) == heads
    run.folder.mkdir(parents=True)
    run.add([head | {"score": 0.5} for head in heads[:2]])
    run.add([{"elsewhere": True}])
    again = Run(tmp_path / "new" / "run", ("config", "index"))
    for held in (run, again):
        assert held.missing(heads) == heads[2:]
        assert held.missing([heads[0] | {"config": "b"}])
        assert held.records(iter(heads[1::-1])) == [heads[1] | {"score": 0.5}, heads[0] | {"score": 0.5}]
    again.add([heads[0] | {"score": 0.7}])
    assert Run(again.folder, again.key).records(heads[:1]) == [heads[0] | {"score": 0.7}]
    assert len(read_records(again.folder / "records.jsonl")) == 4
