"""CSV as people and spreadsheets write it: what can be told safely is read, the rest refused in right words."""

from __future__ import annotations

import pytest

from vitembed.collection.finding.label_file import read_labels
from vitembed.csv_text import read_csv
from vitembed.errors import DataError

WANTED = [(2, {"path": "a é.png", "label": "cat"}), (3, {"path": "b.png", "label": "dog, big"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_separators(tmp_path, encoding, sep, end):
    text = end.join([f"Path{sep}LABEL", f"a é.png{sep}cat", f'b.png{sep}"dog, big"', ""])
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    assert read_csv(tmp_path / "l.csv", ("path", "label")) == (["path", "label"], WANTED)
    (tmp_path / "l.csv").write_bytes(f"sep={sep}{end}{text}".encode(encoding))
    columns, rows = read_csv(tmp_path / "l.csv", ("path", "label"))
    assert (columns, [line for line, _ in rows]) == (["path", "label"], [3, 4])
    assert [fields for _, fields in rows] == [fields for _, fields in WANTED]


def test_empty_columns_and_cells_at_the_end(tmp_path):
    (tmp_path / "l.csv").write_text("path,label,note,,\na,cat,x,,\nb,dog\nc,cat,,,,,\n,,,,\n")
    columns, rows = read_csv(tmp_path / "l.csv", ("path", "label"))
    assert columns == ["path", "label", "note"]
    assert [fields["note"] for _, fields in rows] == ["x", "", ""]


@pytest.mark.parametrize("name", ["image_path", "FileName", "Image Path", "file", "filepath"])
@pytest.mark.parametrize("sep", [",", ";"])
def test_other_names_of_path(tmp_path, name, sep):
    (tmp_path / "l.csv").write_text(f"{name}{sep}label\na.png{sep}cat\n")
    assert read_csv(tmp_path / "l.csv", ("path", "label"))[1] == [(2, {"path": "a.png", "label": "cat"})]
    assert read_labels(tmp_path / "l.csv")["a.png"] == "cat"
    (tmp_path / "l.csv").write_text(f"{name}{sep}label{sep}path\nx{sep}cat{sep}a.png\n")
    assert read_csv(tmp_path / "l.csv", ("path", "label"))[1][0][1]["path"] == "a.png"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\na,cat\n".encode("utf-16-le"), "seems to be UTF-16 without a byte order mark: save it as UTF-8"),
        ("path,label\na,cat\n".encode("utf-16") + b"\0", "begins as UTF-16 and is cut short or damaged"),
        ("path,label\na,Löwe\n".encode("latin-1"), r"line 2: label L\\udcf6we is not UTF-8: save the file as UTF-8"),
        (b"PK\x03\x04" + bytes(64), "a spreadsheet or an archive, expected CSV text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r\xff", "binary data, expected CSV text"),
        (b"", "the first line must name the columns path,label; the file is empty"),
        (b"name|label\na|b\n", r"must name the columns path,label; it is 'name\|label'"),
        (b"path,label,label\na,cat,dog\n", "two columns are called 'label'"),
        (b"path,label,\na,cat,odd\n", "line 2: 3 fields, the header has 2"),
        (b"path,label\na\n", "line 2: 1 fields, the header has 2"),
    ],
)
def test_what_is_refused(tmp_path, data, message):
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(DataError, match=message) as raised:
        read_csv(tmp_path / "l.csv", ("path", "label"))
    assert "\n" not in str(raised.value)
