import dataclasses
import errno
import math
import os

import numpy as np
import pytest

from abs_model.evaluation.run.ledger import LedgerError, Part, Record, missing, read_records


def record(index, **changes):
    image = np.random.default_rng(index).random((4, 3, 1), np.float32)
    fields = {
        "index": index, "label": 3, "clean_prediction": 3, "claimed": True, "reasons": (),
        "prediction": 5, "distance": 1.1 + index, "num_queries": 7, "num_gradients": 2,
        "image": image,
    }  # fmt: skip
    return Record(**(fields | changes))


def same(first, second):
    first, second = dataclasses.asdict(first), dataclasses.asdict(second)
    images = first.pop("image"), second.pop("image")
    np.testing.assert_array_equal(*images, strict=True)
    return first == second


def write(folder, records, name="all"):
    with Part(folder, name, {"seed": 0}) as part:
        part.append(records)
    return folder / f"{name}.jsonl"


def test_records_come_back_as_they_were(tmp_path):
    records = [
        record(0),
        record(4, claimed=False, image=None, distance=math.inf),
        record(2, reasons=("out_of_bounds",), num_queries=None, num_gradients=None),
    ]
    write(tmp_path / "a", records)
    found = read_records(tmp_path / "a")
    assert list(found) == [0, 4, 2]
    assert all(same(found[each.index], each) for each in records)
    assert missing(found, range(5)) == [1, 3]
    assert read_records(tmp_path / "absent") == {}


def test_parts_are_merged(tmp_path):
    write(tmp_path, [record(0), record(2)], "1-of-2")
    write(tmp_path, [record(1)], "2-of-2")
    assert sorted(read_records(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_line_cut_short_is_taken_away_and_done_again(cut, tmp_path):
    path = write(tmp_path, [record(0), record(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert list(read_records(tmp_path)) == [0]
    write(tmp_path, [record(1)])
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    path = write(tmp_path, [record(0), record(1), record(2)])
    lines = path.read_bytes().split(b"\n")
    damaged = lines[1].replace(b'"label":3', b'"label":4')
    path.write_bytes(b"\n".join([lines[0], damaged, *lines[2:]]))
    with pytest.raises(LedgerError, match=r"line 2 of the ledger .*its checksum is off"):
        read_records(tmp_path)
    path.write_bytes(b"\n".join([lines[0], *lines[2:]]))
    assert list(read_records(tmp_path)) == [0, 2]
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(LedgerError, match=r"line 1 .*it is no record"):
        read_records(tmp_path)


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    path = write(tmp_path, [record(0)])
    before = path.read_bytes()
    part = Part(tmp_path, "all", {})

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LedgerError, match=r"No space left on device.*What was computed before"):
        part.append([record(1)])
    assert path.read_bytes() == before


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "all.jsonl").mkdir()
    with pytest.raises(LedgerError, match=r"can't read the ledger .*all\.jsonl"):
        read_records(tmp_path)


def test_only_what_holds_is_adversarial():
    assert record(0).adversarial is not None
    for changes in ({"image": None}, {"distance": math.inf}, {"clean_prediction": 4}):
        assert record(0, **changes).adversarial is None


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="can't write to the ledger"):
        Part(tmp_path / "file", "all", {})
