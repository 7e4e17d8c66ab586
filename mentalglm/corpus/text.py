"""The normal form of a post: what prompts and text hashes are made of."""

import hashlib
import re
import unicodedata

NORMAL_FORM_VERSION = "1"
"""Raised with every change that can change a text or its hash; part of a run's fingerprint."""

REPLACEMENT = "\ufffd"

_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # C0 and C1 but TAB, LF and CR
# Zero-width space, non-joiner, word joiner, byte order mark; the controls of writing direction.
_INVISIBLES = re.compile("[\u200b\u200c\u2060\ufeff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_EMOJI = "\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\U0001f000-\U0001faff"
# The joiner makes one emoji of several; anywhere else it shows nothing. Before it may stand a variation selector.
_LOOSE_JOINERS = re.compile(f"(?<![{_EMOJI}\ufe0f])\u200d|\u200d(?![{_EMOJI}])")
# Anything that one of the steps above may change.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def normalise(text: str) -> tuple[str, tuple[str, ...]]:
    """The normal form of `text` and flags for what was changed in its substance.

    Lone surrogates become U+FFFD, line ends LF; control, zero-width and bidirectional control characters go (U+200D
    stays between emoji); Unicode NFC; outer white space goes. NFKC is not used: it would change full-width forms and
    emoji-like symbols that the models have seen as they are. Idempotent.

    Flags: `lone_surrogate_replaced`, `control_characters_removed`, `invisible_characters_removed`.
    """
    flags: tuple[str, ...] = ()
    # Nothing suspect is printable: a quick look spares most posts the search.
    if not text.isprintable() and _SUSPECT.search(text):
        text, flags = _clean(text)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return text.strip(), flags


def _clean(text: str) -> tuple[str, tuple[str, ...]]:
    flags: list[str] = []
    text, count = _SURROGATES.subn(REPLACEMENT, text)
    if count:
        flags.append("lone_surrogate_replaced")
    text, count = _CONTROLS.subn("", text)
    if count:
        flags.append("control_characters_removed")
    text, num_invisible = _INVISIBLES.subn("", text)
    text, num_joiners = _LOOSE_JOINERS.subn("", text)
    if num_invisible or num_joiners:
        flags.append("invisible_characters_removed")
    return text.replace("\r\n", "\n").replace("\r", "\n"), tuple(flags)


def replace_surrogates(text: str) -> str:
    """`text` as something that can be written as UTF-8."""
    return _SURROGATES.sub(REPLACEMENT, text)


def text_hash(normalised: str) -> str:
    """32 hex digits: BLAKE2b with 16 bytes over the UTF-8 of a normalised text. Equal texts have equal hashes."""
    return hashlib.blake2b(normalised.encode(), digest_size=16).hexdigest()
