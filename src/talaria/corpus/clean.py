"""Text in, the same text with its encoding and layout put in order, and personal data masked, out."""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls but tab and line feed, byte order marks, and halves of characters from damaged JSON escapes.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n{4,}|\n+\Z")

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(?![\w-])", re.ASCII)
_PHONE = re.compile(
    r"""(?<![\w.+/-])(?:
        \+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}  # +44 20 7946 0958
      | \(\d{3}\)[ .-]?\d{3}[ .-]\d{4}                                     # (212) 555-0123
      | \d{3}[.-]\d{3}[.-]\d{4}                                            # 212-555-0123
      | 1[3-9]\d[ -]?\d{4}[ -]?\d{4}                                       # Chinese mobile: 139 1234 5678
      | 0\d{2,3}-\d{7,8}                                                   # Chinese land line: 010-12345678
      | (?<=tel[.:]\ |Tel[.:]\ |TEL[.:]\ )\d{3}-\d{4}                         # tel. 555-0123
    )(?![\w/-])""",
    re.VERBOSE | re.ASCII,
)


def normalise(text: str) -> str:
    """One kind of line end, NFC, no control characters, no white space at line ends, at most two blank lines in a row.

    Indentation, full-width forms and everything else that carries meaning in code, verse and Chinese stay.
    """
    text = unicodedata.normalize("NFC", text)
    for line_end in ("\r\n", "\r", "\u2028", "\u2029"):
        text = text.replace(line_end, "\n")
    text = _CONTROL.sub("", text)
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    return _BLANK_LINES.sub(lambda run: "\n" if run.end() == len(text) else "\n\n\n", text).lstrip("\n")


def mask_personal_data(text: str) -> tuple[str, int, int]:
    """`text` with <email> and <phone> in the place of addresses and numbers, and how many there were of each.

    A phone number is told from other numbers by its form (see the pattern), so plain digit strings, dates, sums and
    ISBNs stay, and so does a number that is written in an uncommon form.
    """
    text, emails = _EMAIL.subn("<email>", text) if "@" in text else (text, 0)
    text, phones = _PHONE.subn("<phone>", text)
    return text, emails, phones
