"""The normal form of a post."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.corpus import normalise, text_hash

AWKWARD = "a 文é\u0301\r\n\t\x00\x85\u200b\u200c\u200d\u2060\ufeff\u202e\u2066\u3000\u2028"
AWKWARD += "\ud83d\udc00😀👩👍🏽❤\ufe0fe\u0344\u212b"
texts = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=())), max_size=30)


@given(texts)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once, _ = normalise(text)
    assert normalise(once) == (once, ())


@given(texts)
def test_a_normal_text_can_be_written_and_holds_nothing_invisible(text: str) -> None:
    normal, _ = normalise(text)
    normal.encode()
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == normal.strip()
    assert not set(normal) & set("\x00\r\x7f\x85\u200b\u200c\u2060\ufeff\u200e\u202e\u2066")


@given(st.text(st.characters(categories=["Lo", "Nd", "Po"]), max_size=30))
def test_what_is_in_normal_form_is_not_touched(text: str) -> None:
    expected = unicodedata.normalize("NFC", text)
    assert normalise(expected) == (expected, ())


@pytest.mark.parametrize(
    ("text", "normal", "flags"),
    [
        ("今天好累[伤心]", "今天好累[伤心]", ()),
        ("a\r\nb\rc", "a\nb\nc", ()),
        ("\ud800x", "\ufffdx", ("lone_surrogate_replaced",)),
        ("a\x00b\x07", "ab", ("control_characters_removed",)),
        ("a\tb\nc", "a\tb\nc", ()),
        ("\ufeffa\u200bb\u202e", "ab", ("invisible_characters_removed",)),
        ("e\u200b\u0301", "é", ("invisible_characters_removed",)),  # composed only when the space between is gone
        ("👩\u200d👧", "👩\u200d👧", ()),
        ("❤\ufe0f\u200d🔥", "❤\ufe0f\u200d🔥", ()),
        ("a\u200db", "ab", ("invisible_characters_removed",)),
        ("e\u0301", "é", ()),
        ("ＡＢ①㎏", "ＡＢ①㎏", ()),  # NFKC would change them
        ("　 全角空格　", "全角空格", ()),
        (" \u200b\n\u3000", "", ("invisible_characters_removed",)),
        ("😀", "😀", ()),
        ("http://t.cn/xxxx", "http://t.cn/xxxx", ()),
        ("<|assistant|>[gMASK]<sop>", "<|assistant|>[gMASK]<sop>", ()),
    ],
)
def test_normal_form(text: str, normal: str, flags: tuple[str, ...]) -> None:
    assert normalise(text) == (normal, flags)


def test_equal_texts_have_equal_hashes() -> None:
    assert text_hash(normalise("é ")[0]) == text_hash(normalise("e\u0301\x00")[0])
    assert text_hash("a") != text_hash("b")
    assert len(text_hash("")) == 32


def test_a_very_long_post_is_kept_whole() -> None:
    text = "长\x00" * 100_000
    assert normalise(text) == ("长" * 100_000, ("control_characters_removed",))
