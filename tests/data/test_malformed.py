"""Tables as people have them: condition, and what comes of it: the rows, or the line that is shown."""

import pytest

from luna_monai.errors import LunaError
from luna_monai.tables import read_table

HEAD = "seriesuid,coordX,coordY,coordZ,class\n"
ROWS = [["1.2", 1.5, 2.0, 3.0, 0.0], ["1.3", 4.0, 5.0, 6.0, 1.0]]
PLAIN = HEAD + "1.2,1.5,2,3,0\n1.3,4,5,6,1\n"

TABLES = {
    "plain": (PLAIN, ROWS),
    "a comma at the end of each row": (HEAD + "1.2,1.5,2,3,0,\n1.3,4,5,6,1,\n", ROWS),
    "a comma at the end of one row": (HEAD + "1.2,1.5,2,3,0\n1.3,4,5,6,1,\n", ROWS),
    "a comma at the end of all lines": (PLAIN.replace("\n", ",\n"), ROWS),
    "name of DICOM": (PLAIN.replace("seriesuid", "SeriesInstanceUID"), ROWS),
    "other case": (PLAIN.replace("coordX", "CoordX").replace("class", "Class"), ROWS),
    "blanks": (PLAIN.replace(",", " , ").replace("1.3", " 1.3"), ROWS),
    "semicolons": (PLAIN.replace(",", ";"), ROWS),
    "semicolons and decimal commas": (PLAIN.replace(",", ";").replace("1.5", "1,5"), ROWS),
    "tabs": (PLAIN.replace(",", "\t"), ROWS),
    "byte order mark": (b"\xef\xbb\xbf" + PLAIN.encode(), ROWS),
    "UTF-16": (PLAIN.encode("utf-16"), "holds binary data); save it as CSV in UTF-8"),
    "Latin-1": (PLAIN.replace("class", "class,note").replace("3,0", "3,0,\xfc").encode("latin-1"), ROWS),
    "line ends of Windows": (PLAIN.replace("\n", "\r\n"), ROWS),
    "line ends of old": (PLAIN.replace("\n", "\r"), ROWS),
    "blank lines": ("\n" + PLAIN.replace("\n", "\n\n"), ROWS),
    "columns of one name that nobody needs": (PLAIN.replace("class", "class,a,a").replace("3,0", "3,0,7,8"), ROWS),
    "empty": ("", "the file is empty"),
    "commas only": (",,,\n", "the file is empty"),
    "more fields": (PLAIN.replace("6,1", "6,1,7"), "line 3: more fields than the 5 of the header line"),
    "many more fields": (PLAIN.replace("6,1", "6,1,,,7"), "Expected 6 fields in line 3, saw 8"),
    "fewer fields": (PLAIN.replace("6,1", "6"), "line 3: 'class' must be a number, found nothing"),
    "text after blank lines": ("\n" + HEAD + "\n\n1.2,x,2,3,0\n", "line 5: 'coordX' must be a number, found 'x'"),
    "class after blank lines": (HEAD + "\n\n1.2,1,2,3,2\n", "line 4: 'class' must be 0 or 1, found 2.0"),
    "infinite": (PLAIN.replace("1.5", "inf"), "line 2: 'coordX' must be a number, found inf"),
    "no series": (PLAIN.replace("1.3", " "), "line 3: no value for 'seriesuid'"),
    "a column twice": (PLAIN.replace("coordY", "coordX"), "line 1: several columns for 'coordX', found seriesuid"),
    "no column": (PLAIN.replace("coordY", "y"), "no column 'coordY' in the header line, found seriesuid,coordX,y"),
    "open quote": (PLAIN.replace("1.3", '"1.3'), "not a CSV table"),
    "binary": (bytes(range(256)), "not a CSV table"),
    "a spreadsheet": (b"PK\3\4" + bytes(100), "not a CSV table (it holds binary data)"),
    "a comma at the end of all lines, Windows": (PLAIN.replace("\n", ",\r\n"), ROWS),
    "Latin-1, semicolons, decimal commas": (
        PLAIN.replace(",", ";").replace("1.5", "1,5").replace("class", "class;B\xf6").encode("latin-1"),
        ROWS,
    ),
    "decimal commas in quotes": (PLAIN.replace("1.5", '"1,5"'), "line 2: 'coordX' must be a number, found '1,5'"),
    "decimal commas and points": (
        PLAIN.replace(",", ";").replace("1.5", "1.234,5"),
        "line 2: 'coordX' must be a number, found '1.234,5'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("condition", TABLES)
def test_table(tmp_path, condition):
    content, expected = TABLES[condition]
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    allowed = {"class": (lambda values: values.isin([0, 1]), "0 or 1")}

    def read():
        return read_table(path, ["coordX", "coordY", "coordZ", "class"], allowed=allowed).to_numpy().tolist()

    if isinstance(expected, list):
        assert read() == expected
        return
    with pytest.raises(LunaError) as caught:
        read()
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
