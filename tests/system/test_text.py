"""Names from outside on a terminal and in a spreadsheet."""

import pytest

from dl.system.text import csv_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 猫 🐈\u200d⬛ 'x' \\", "Grüße, 猫 🐈\u200d⬛ 'x' \\"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("two\nlines\r\n\ttab\x00", "two\\nlines\\r\\n\\ttab\\x00"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
        ("cat\u202egnp.exe", "cat\\u202egnp.exe"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\udce9"),
        (3, "3"),
    ],
)
def test_what_could_change_a_terminal_is_escaped_and_the_rest_stays(text, shown):
    assert printable(text) == shown
    printable(text).encode()  # can be written


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cat", "@SUM(A1)", "\uff1d1", " =1", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text):
    cell = csv_cell(text)
    assert not cell.lstrip().startswith(tuple("=+-@\uff1d\t\r"))
    assert cell.endswith(text.lstrip("\t\r"))


def test_a_cell_of_plain_text_stays():
    assert csv_cell("tabby, cat = 1") == "tabby, cat = 1"
