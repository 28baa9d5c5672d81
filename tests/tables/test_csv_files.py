import codecs

import pytest

from silotune.tables.checks import check
from silotune.tables.readers import read_source


def errors(source, **options):
    return [str(p) for p in check(source, **options).of("error")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimiters_and_line_endings_are_found_out(shop, delimiter, ending):
    source = shop.write("csv")
    lines = [
        ["item_id", "title", "category", "price, net; per kg|l\t"],
        ["item-0", "Tea, black; or | green", "Drinks", ""],
        ["item-1", 'Tea "No. 1"\nin two lines', "Drinks", "1"],
        ["item-2", "Täe", "Drinks", "1"],
        ["item-3", "Tea", "Drinks", "1"],
    ]
    fields = [[f'"{f.replace(chr(34), chr(34) * 2)}"' for f in line] for line in lines]
    text = ending.join(delimiter.join(line) for line in fields)
    (source / "items.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    with read_source(source) as stage:
        found = stage.connection.execute(stage.tables["items"].query).fetchall()
    assert [row[:2] for row in found] == [tuple(line[:2]) for line in lines[1:]]


def test_line_numbers_count_line_breaks_in_values_and_blank_lines(shop):
    source = shop.write("csv")
    (source / "items.csv").write_text(
        'item_id,title,category\nitem-0,"a\nb\nc",Drinks\n\nitem-1,Tea,\n,Tea,Drinks\nitem-2,a,Drinks\n'
        "item-3,a,Drinks\n"
    )
    assert errors(source)[:2] == [
        "items.csv: column 'item_id' has 1 empty value (at row 3, line 7). Fill or drop them.",
        "items.csv: column 'category' has 1 empty value (at row 2, line 6). Fill or drop them.",
    ]


def test_blank_lines_of_a_single_column_are_empty_values(shop):
    source = shop.write("csv")
    (source / "users.csv").write_text("user_id\nuser-0\n\nuser-1\n")
    assert errors(source) == [
        "users.csv: column 'user_id' has 1 empty value (at row 2, line 3). Fill or drop them."
    ]


HEAD = b"item_id,title,category\n"
TEA = b"item-0,Tea,Drinks\n"
LONG = b"x" * 3_000_000
MALFORMED = [
    (HEAD + b"item-0,T\xe4e,Drinks\n", "is not UTF-8 text (at line 2). Save it as UTF-8, for"),
    (HEAD.decode().encode("utf-16"), "is UTF-16 text. Save it as UTF-8, the only encoding"),
    (HEAD + b"item-0,T\xc3", "ends within a character (at line 2). Export it again."),
    (b"", "is empty. Its first line must hold the names of the columns."),
    (b"\n\n", "has none of the columns item_id, title, category, brand, size in its first line. "),
    (TEA, "has none of the columns item_id, title, category, brand, size in its first line. The"),
    (b"item_id,title,category,\n", "has no name for column 4 in its first line. Give every"),
    (
        b"item_id,title,category,Title\n",
        "has two columns 'title' and 'Title', which cannot be told apart. Rename or drop one",
    ),
    (
        HEAD + TEA + b"item-1,Tea\nitem-2\n",
        "has 2 rows with fewer fields than the header (first at line 3). Put fields that hold",
    ),
    (
        HEAD + b'\nitem-0,"a\nb",Drinks\nitem-1,Tea,Drinks,3\n',
        "has 1 row with more fields than the header (at line 5). Put fields that hold the",
    ),
    (HEAD + TEA + b'item-1,"Tea,Drinks\n', "has a row whose quotes do not match (at line 3). Put"),
    (HEAD + b'item-0,"Te"a,Drinks\n', "has a row whose quotes do not match (at line 2). Put"),
    (HEAD + b'item-0,"' + LONG + b'",Drinks\n', "has a row whose quotes do not match (at line 2)."),
    (HEAD + b"item-0," + LONG + b",Drinks\n", "has 1 row of more than 2 MB (at line 2). Put"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED, ids=[m[1][:30] for m in MALFORMED])
def test_a_malformed_csv_file_is_refused(shop, content, message):
    source = shop.write("csv")
    (source / "items.csv").write_bytes(content)
    shop.assert_refused(source, f"items.csv: {message}")


def test_wrong_encoding_is_found_past_the_first_megabyte(shop):
    source = shop.write("csv")
    line = "item-{},Tée,Drinks\n"
    content = "item_id,title,category\n" + "".join(line.format(i) for i in range(90_000))
    (source / "items.csv").write_bytes(content.encode() + line.format(0).encode("latin-1"))
    assert errors(source) == [
        (
            "items.csv: is not UTF-8 text (at line 90002). Save it as UTF-8, for instance with "
            "`iconv -f WINDOWS-1252 -t UTF-8`."
        )
    ]


def test_offsets_become_utc_and_their_absence_means_utc(shop):
    source = shop.write("csv")
    times = {
        "2024-01-31T23:30:00": "2024-01-31 23:30:00",
        "2024-01-31T23:30:00Z": "2024-01-31 23:30:00",
        "2024-01-31 23:30:00.5+02:00": "2024-01-31 21:30:00.5",
        " 2024-01-31 ": "2024-01-31 00:00:00",
    }
    lines = [f"user-1,item-1,view,{time}" for time in times]
    (source / "events.csv").write_text("\n".join(["user_id,item_id,kind,time", *lines]))
    with read_source(source) as stage:
        found = stage.connection.execute("SELECT CAST(time AS VARCHAR) FROM events").fetchall()
    assert [row[0] for row in found] == list(times.values())
