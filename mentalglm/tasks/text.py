"""Making answers comparable: two spellings of the same characters fold to one. Lengths never change on folding."""

import unicodedata
from collections.abc import Callable
from functools import cache

# Joiners and fillers that draw nothing but are not in Unicode's format category.
_FILLERS = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_KEPT_CONTROLS = {0x09, 0x0A}
_CIRCLED_NUMBERS = {*range(0x2460, 0x2474), *range(0x2776, 0x2794)}


class _CleanTable(dict[int, str | int | None]):
    """code point -> what it is replaced by; filled as characters are met."""

    def __missing__(self, code: int) -> str | int | None:
        category = unicodedata.category(chr(code))
        value: str | int | None = code
        if category == "Cs":
            value = "\ufffd"  # half a surrogate pair: not text
        elif code in _FILLERS or category in ("Cf", "Co"):
            value = None  # zero-width, bidirectional marks; private-use characters, which the parser uses itself
        elif category == "Zl" or category == "Zp":
            value = "\n"
        elif category == "Cc" and code not in _KEPT_CONTROLS:
            value = " "
        self[code] = value
        return value


class _FoldTable(dict[int, str | int]):
    """code point -> the one character it is compared as: compatibility form, lower case."""

    def __missing__(self, code: int) -> str | int:
        if code in _CIRCLED_NUMBERS:  # ①读心术②放大: they number a list, so they separate its items
            self[code] = "、"
            return "、"
        folded = unicodedata.normalize("NFKC", chr(code))
        folded = folded.lower() if len(folded) == 1 else chr(code)
        value: str | int = folded if len(folded) == 1 else code
        self[code] = value
        return value


_CLEAN = _CleanTable()
_FOLD = _FoldTable()


def clean(raw: str) -> str:
    """`raw` without invisible characters, with `\\n` as the only line break; what is left reads the same."""
    return raw.replace("\r\n", "\n").replace("\r", "\n").translate(_CLEAN)


def fold(text: str) -> str:
    """`text` for matching: half width, lower case, simplified. Same length, so that positions agree."""
    folded = text.translate(_FOLD)
    if folded.isascii():
        return folded
    simplified = _to_simplified()(folded)
    if len(simplified) == len(folded):
        return simplified
    return "".join(one if len(one := _to_simplified()(char)) == 1 else char for char in folded)


@cache
def _to_simplified() -> Callable[[str], str]:
    import opencc  # on first use: loading it takes longer than the rest of this package

    converter = opencc.OpenCC("t2s")
    return lambda text: str(converter.convert(text))
