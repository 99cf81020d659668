from alitok.common.errors import first_line


def test_the_first_line_of_an_error_for_a_sentence():
    assert first_line(ValueError("  no such thing.\nand more\n")) == "no such thing"
    assert first_line(ValueError()) == "ValueError"
