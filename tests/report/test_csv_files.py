"""metrics.csv: what is written reads back, what is damaged is refused in one line."""

import csv
import errno
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.records import Record, columns, to_row
from mlperf_opt.report.csv_files import read_metrics, write_metrics, write_table
from mlperf_opt.report.files import write_bytes, write_json, write_text


def cells(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_those_of_the_record(tmp_path, make_record):
    write_metrics(tmp_path / "metrics.csv", [make_record()])
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",") == columns()


def test_numbers_and_empty_cells_are_honest(tmp_path, make_record):
    records = [
        make_record("baseline", parameters=2410, quality=0.1 + 0.2, quality_ok=True, speedup=1e-7),
        make_record("quant", parameters=None, quality=1 / 3, quality_ok=None, macs=2**53 + 1, speedup=math.nan),
    ]
    write_metrics(tmp_path / "m.csv", records)
    first, second = cells(tmp_path / "m.csv")
    assert (first["parameters"], first["quality"], first["quality_ok"], first["speedup"]) == (
        "2410",
        repr(0.1 + 0.2),
        "True",
        "1e-07",
    )
    assert (second["parameters"], second["quality"], second["quality_ok"]) == ("", repr(1 / 3), "")
    assert (second["macs"], second["speedup"], second["reasons"]) == (str(2**53 + 1), "nan", "")


def test_what_is_written_reads_back(tmp_path, make_record):
    records = [
        make_record("baseline", quality=1 / 3, quality_ok=False, parameters=7, model_sha256="0123"),
        make_record("a", settings='{"a": "x,\\"y\\""}', reasons="=1+1\nline, 'two' | ä"),
    ]
    write_metrics(tmp_path / "m.csv", records)
    frame = read_metrics(tmp_path / "m.csv")
    back = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    assert back == [to_row(record) for record in records]
    assert [str(frame[name].dtype) for name in ("step", "macs", "quality", "quality_ok", "name")] == [
        *("Int64", "Int64", "Float64", "boolean", "string")
    ]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1", "\n=1", "'quoted", "''"])
def test_no_text_becomes_a_formula(tmp_path, make_record, text):
    write_metrics(tmp_path / "m.csv", [make_record(reasons=text)])
    assert cells(tmp_path / "m.csv")[0]["reasons"] == f"'{text}"
    assert read_metrics(tmp_path / "m.csv")["reasons"][0] == text


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n,\"'="), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(texts, st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1))
def test_any_text_and_number_reads_back(tmp_path, make_record, text, real, whole):
    write_metrics(tmp_path / "m.csv", [make_record(reasons=text, settings=text, quality=real, macs=whole)])
    row = read_metrics(tmp_path / "m.csv").iloc[0]
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # of all texts, only the kind of line end may change
    assert (row["reasons"], row["settings"], row["quality"], row["macs"]) == (lines, lines, real, whole)
    assert [cell["reasons"] for cell in cells(tmp_path / "m.csv")] in ([lines], [f"'{lines}"])


def test_tables_take_all_keys_in_order(tmp_path):
    rows = [{"job": 0, "sparsity": 0.5}, {"job": 1, "note": "=x", "share": np.float32(0.1)}]
    write_table(tmp_path / "s.csv", rows)
    assert (tmp_path / "s.csv").read_text() == "job,sparsity,note,share\n0,0.5,,\n1,,'=x,0.1\n"


def break_the_disk(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, record: write_metrics(path, [record]),
        lambda path, record: write_table(path, [{"a": 1}]),
        lambda path, record: write_text(path, "new"),
        lambda path, record: write_bytes(path, b"new"),
        lambda path, record: write_json(path, {"new": 1}),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, make_record, write):
    path = tmp_path / "m.csv"
    path.write_text("old")
    break_the_disk(monkeypatch)
    with pytest.raises(MlperfOptError, match=r"cannot write .*m\.csv: No space left on device"):
        write(path, make_record())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "m.csv", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_or_in_the_way_is_one_line(tmp_path):
    with pytest.raises(MlperfOptError, match=r"cannot write .*no/m\.csv: No such file or directory"):
        write_text(tmp_path / "no" / "m.csv", "x")
    with pytest.raises(MlperfOptError, match=r"cannot write .*: Is a directory"):
        write_text(tmp_path, "x")
    assert list(tmp_path.parent.glob(".*.tmp")) == []


def test_json_is_plain_and_refuses_nan(tmp_path):
    write_json(tmp_path / "run.json", {"b": [1, None], "a": "ä"})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"b": [1, None], "a": "ä"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "run.json", {"a": math.nan})


def test_a_text_that_is_no_unicode_is_still_written(tmp_path):
    write_text(tmp_path / "a", "x\udcff")
    assert (tmp_path / "a").read_text() == "x\\udcff"


def test_lines_and_bytes_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a", "one\r\ntwo\n")
    write_bytes(tmp_path / "b", bytes(range(256)))
    assert (tmp_path / "a").read_bytes() == b"one\r\ntwo\n"
    assert (tmp_path / "b").read_bytes() == bytes(range(256))


@pytest.fixture
def good(tmp_path, make_record):
    path = tmp_path / "good.csv"
    write_metrics(path, [make_record("baseline", quality=0.9, macs=4736, quality_ok=True), make_record("quant")])
    return path


def damage(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n1,", "\n2,", r"written with schema '1', '2'; this version reads schema 1"),
        (",macs,", ",mac,", r"missing columns: macs"),
        ("schema,", "scheme,", r"no column schema"),
        (",0.9,", ",lots,", r"row 2, quality: 'lots' is not a number"),
        (",4736,", ",4736.5,", r"row 2, macs: '4736\.5' is not a whole number"),
        (",4736,", f",{10**19},", r"row 2, macs: '10000000000000000000' is not a whole number"),
        (",True,", ",yes,", r"row 2, quality_ok: 'yes' is not True or False"),
        (",test,0,", ",test,,", r"row 2, seed: '' is not a whole number"),
        (",test,0,", ",test,0,0,", r"row 2: \d+ cells under \d+ columns"),
        ("{}", '"{}', "not a CSV file"),
    ],
)
def test_a_damaged_file_is_refused(good, old, new, message):
    with pytest.raises(ConfigError, match=message):
        read_metrics(damage(good, old, new))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    with pytest.raises(ConfigError, match=r"cannot read .*x\.csv: No such file"):
        read_metrics(path)
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_metrics(tmp_path)
    for content, message in [
        (b"", "empty"),
        (b"\xff\xfe\x00", "not a text in UTF-8"),
        (b"a,b\n1,2\n", "no column schema"),
        (b"# A page\n\nof text, with commas\n", "not a metrics.csv of mlperf_opt"),
        (",".join(columns()).encode(), "no rows"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_metrics(path)


def test_spreadsheets_and_newer_versions_may_add(good):
    good.write_bytes(b"\xef\xbb\xbf" + good.read_bytes().replace(b"\n", b"\r\n"))
    assert read_metrics(good)["name"].tolist() == ["baseline", "quant"]
    lines = good.read_text(encoding="utf-8-sig").splitlines()
    good.write_text("\n".join([lines[0] + ",future", *(f"{line},1" for line in lines[1:])]))
    assert list(read_metrics(good).columns) == columns()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(junk=st.binary(max_size=60), place=st.floats(0, 1), keep=st.booleans())
def test_junk_is_refused_or_read_but_never_breaks(tmp_path, make_record, junk, place, keep):
    path = tmp_path / "junk.csv"
    write_metrics(path, [make_record(quality=0.5)])
    whole = path.read_bytes()
    cut = int(place * len(whole))
    path.write_bytes(whole[:cut] + junk + whole[cut:] if keep else junk)
    try:
        frame = read_metrics(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert list(frame.columns) == columns()
        assert isinstance(frame, pd.DataFrame)


def test_every_field_of_the_record_has_a_type_that_the_reader_knows(tmp_path):
    numbers = {"seed": 1, "threads": 1, "batch": 1, "step": 0}
    texts = dict.fromkeys(("run", "model", "data", "split", "runtime", "name", "pass_", "settings"), "x")
    write_metrics(tmp_path / "m.csv", [Record(**numbers, **texts)])
    assert read_metrics(tmp_path / "m.csv").isna().sum(axis=1)[0] == len(columns()) - len(numbers) - len(texts) - 3
