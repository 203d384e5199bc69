"""Letters that a terminal's encoding lacks."""

import io
import sys

from engine.terminal import escape_unknown_letters


def test_letters_that_the_terminal_lacks_are_printed_as_escapes(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    escape_unknown_letters()
    print("τ = 0.03", flush=True)
    assert written.getvalue() == b"\\u03c4 = 0.03\n"
