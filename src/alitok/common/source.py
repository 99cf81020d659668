"""Digests of Python source that ignore comments, docstrings and layout."""

import hashlib
import io
import tokenize
from pathlib import Path

_MARKS = {tokenize.NEWLINE: ";", tokenize.INDENT: ">", tokenize.DEDENT: "<"}
_LEFT_OUT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)


def code_digest(path: str | Path) -> str:
    """SHA-256 of a source file without comments, docstrings and any spaces, not even those in strings."""
    text = Path(path).read_text("utf-8")
    words: list[str] = []
    statement: list[int] = []  # types of its tokens
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _LEFT_OUT:
            continue
        if token.type == tokenize.NEWLINE and statement == [tokenize.STRING]:
            words.pop()  # a string that is a whole statement is a docstring
        else:
            # without spaces, because only Python 3.12 and later split an f-string into tokens
            words.append(_MARKS.get(token.type, "".join(token.string.split())))
        statement = [] if token.type in _MARKS else [*statement, token.type]
    return hashlib.sha256("".join(words).encode()).hexdigest()
