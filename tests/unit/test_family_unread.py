"""What the text encoders do not see of a text: its end, and what the tokenizer has no token for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tests.conftest import write_tiny_tokenizer
from tests.families.parts import t5_tokenizer
from veneer.family.registry import load_family
from veneer.family.unread import Unread, find_unread, join_unread, unread_notes

LIMIT = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer") / "clip"
    write_tiny_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def t5() -> Any:
    return t5_tokenizer(512)


def slow(tokenizer: Any) -> Any:
    """The same tokenizer, which does not tell where its tokens stand."""

    def call(texts: Any, **options: Any) -> Any:
        assert not options.pop("return_offsets_mapping", False)
        return tokenizer(texts, **options)

    names = ("convert_ids_to_tokens", "all_special_tokens", "decode")
    return type("Slow", (SimpleNamespace,), {"__call__": staticmethod(call)})(
        is_fast=False, **{name: getattr(tokenizer, name) for name in names}
    )


def test_a_text_that_fits_is_left_out(clip: Any) -> None:
    assert find_unread(clip, ["", "a cat", "abcde", "   abc   "], LIMIT) == {}


@pytest.mark.parametrize(
    ("text", "read", "rest"),
    [
        ("a cat, a cat x", "a cat, a cat ", "x"),
        ("A Cat, A Cat X", "A Cat, A Cat ", "X"),  # in the user's own letters
        ("abcdefgh", "abcde", "fgh"),
        ("abcd \N{CAT FACE} x", "abcd ", "\N{CAT FACE} x"),  # a character is cut nowhere
        ("a, b, a \n c", "a, b, a \n ", "c"),
    ],
)
def test_the_rest_is_quoted_as_it_stands(clip: Any, text: str, read: str, rest: str) -> None:
    (one,) = find_unread(clip, [text], LIMIT).values()
    assert (one.read, one.rest, one.limit, one.is_cut) == (read, rest, LIMIT, True)


@given(text=st.text(max_size=30))
@example(text="0000THA")  # cut within a word, whose first part has other tokens where it stands alone
def test_the_text_is_cut_where_the_first_token_that_is_not_read_begins(clip: Any, text: str) -> None:
    found = find_unread(clip, [text], LIMIT)
    encoded = clip(text, add_special_tokens=False, return_offsets_mapping=True)
    count, spans = len(encoded.input_ids), encoded.offset_mapping
    assert (text in found and found[text].is_cut) == (count > LIMIT)
    for one in found.values():
        assert one.read + one.rest == text and one.tokens == count
        assert not one.is_cut or spans[LIMIT][0] == len(one.read)


def test_a_tokenizer_without_places_gives_its_own_spelling(clip: Any, t5: Any) -> None:
    (one,) = find_unread(slow(clip), ["A Cat, A Cat The X"], LIMIT).values()
    assert (one.tokens, one.limit, one.rest) == (7, LIMIT, "the x") and one.read.replace(" ", "") == "acat,acat"
    assert find_unread(slow(t5), ["a7b"], LIMIT)["a7b"].unknown == ("<unk>",)


def test_what_has_no_token_is_named_where_it_is_read(t5: Any) -> None:
    found = find_unread(t5, ["a \N{CAT FACE}b", "abcdefgh 7", "fit"], LIMIT)
    assert found["a \N{CAT FACE}b"].unknown == ("\N{CAT FACE}",) and not found["a \N{CAT FACE}b"].is_cut
    assert found["abcdefgh 7"].unknown == ()  # it is not read anyway
    assert "fit" not in found


def test_marks_in_a_text_are_told_apart_from_what_has_no_token(clip: Any, t5: Any) -> None:
    (one,) = find_unread(clip, ["a<|endoftext|>"], LIMIT).values()
    assert (one.marks, one.unknown) == (("<|endoftext|>",), ())
    (one,) = find_unread(t5, ["a</s>7"], LIMIT).values()
    assert (one.marks, one.unknown) == (("</s>",), ("7",))


def test_characters_that_a_tokenizer_drops_are_named_but_not_those_it_composes(clip: Any) -> None:
    from tokenizers import normalizers

    dropping = CLIPTokenizer.from_pretrained(clip.name_or_path)
    backend = dropping.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("\N{CAT FACE}", ""), backend.normalizer])
    (one,) = find_unread(dropping, ["a \N{CAT FACE} b"], LIMIT).values()
    assert one.unknown == ("\N{CAT FACE}",)
    # accents, spaces, syllables of three letters, and what nobody sees
    assert find_unread(clip, ["e\u0301", "a\u200b", "\u1112\u1161\u11ab", " a \n"], 9) == {}


def test_of_several_encoders_the_one_that_reads_least_counts() -> None:
    first, second = Unread(9, 5, "abcde", "fghi", ("7",)), Unread(9, 3, "abc", "defghi", ("8",), ("</s>",))
    assert join_unread([{"abcdefghi": first}, {"abcdefghi": second, "b": first}]) == {
        "abcdefghi": Unread(9, 3, "abc", "defghi", ("7", "8"), ("</s>",)),
        "b": first,
    }


def test_the_bundled_base_reads_thirty_tokens_and_knows_every_character() -> None:
    family = load_family("bundled")
    assert family.text_length == 30
    text = ", ".join(["a small red bird on a thin branch"] * 6) + " \N{CAT FACE} 日本語"
    (one,) = family.unread([text, "\N{CAT FACE} 日本語 {a} ~ é"]).values()
    assert one.rest and one.read + one.rest == text and one.unknown == ()


def notes_of(found: dict[str, Unread], trigger: str | None = None) -> list[tuple[str, str, tuple[str, ...]]]:
    places = {text: f"{number}.txt" for number, text in enumerate(["fits", *found])}
    notes = unread_notes(lambda texts: found, places, trigger=trigger)
    return [(note.code, note.text, note.details) for note in notes]


def test_notes_say_each_kind_of_loss_and_what_is_lost() -> None:
    found = {
        "a b c": Unread(3, 2, "a b ", "c"),
        "d, 7": Unread(2, 2, "d, 7", "", ("7", "8"), ("</s>",)),
        "e f g h": Unread(4, 2, "e f ", "g h"),
    }
    assert notes_of(found, trigger="h") == [
        (
            "data.cut_captions",
            "2 of 4 captions are longer than the 2 tokens that the text encoder reads, so the rest has no effect",
            (
                "3.txt: of 4 tokens only 2 are read; not read: 'g h'",
                "1.txt: of 3 tokens only 2 are read; not read: 'c'",
            ),
        ),
        (
            "data.cut_trigger",
            "the trigger 'h' is not seen at all in 1 of 4 captions, for it stands behind what is read; "
            "write it at the beginning of the text, as data.trigger_placement=start does, or shorten the text",
            ("3.txt: 2 tokens are read",),
        ),
        (
            "data.unknown_characters",
            "the base's tokenizer has no token for a part of 1 of 4 captions, which the text encoder does not see",
            ("2.txt: '7', '8'",),
        ),
        (
            "data.marks_in_captions",
            "1 of 4 captions holds a mark of the base's tokenizer, read as a mark and not as words",
            ("2.txt: '</s>'",),
        ),
    ]


def test_there_is_no_note_where_all_is_seen() -> None:
    assert notes_of({}, trigger="h") == []


def test_a_note_has_no_control_characters_and_one_line() -> None:
    ((_, _, (detail,)),) = notes_of({"a\x1b[2J\nb": Unread(3, 1, "a", "\x1b[2J\nb")})
    assert detail.isprintable()


def test_the_folder_of_a_tokenizer_is_not_needed(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path / "one")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "one")
    assert find_unread(tokenizer, ["abcdef"], LIMIT)["abcdef"].rest == "f"
