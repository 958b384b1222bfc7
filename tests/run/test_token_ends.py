"""Where tokens end: after each, the text up to there has been read, in any script."""

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from words import words

import steerfn as sf
from steerfn.run import token_ends

TEXTS = ["The weather, in short: naïve!", "日本語 and 🙂🙂 after", "  two  spaces\n\nand a line ", "x"]


def test_of_words():
    assert token_ends(words(), ["a  b w", "<bos>a"]) == [((1, 3, 4, 25), {1: 1, 4: 2, 6: 3}), ((1, 3), {5: 0, 6: 1})]


def test_of_bytes(demo):
    """Characters of several tokens end where the last of these does."""
    _, tokenizer = demo
    for text, (ids, ends) in zip(TEXTS, token_ends(tokenizer, TEXTS), strict=True):
        assert max(ends) == len(text) and sorted(ends.values()) == [*ends.values()]
        for end, i in ends.items():
            assert tokenizer.decode(ids[: i + 1]) == text[:end]
    assert len(ids) == 1 and len(token_ends(tokenizer, ["🙂"])[0][1]) == 1


@pytest.mark.parametrize("kind", ["unigram", "lower case"])
def test_of_other_tokenizers(kind):
    inner = Tokenizer(models.Unigram() if kind == "unigram" else models.WordLevel(unk_token="<unk>"))
    if kind == "unigram":  # as SentencePiece: a mark for each space, one before the text
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        inner.normalizer = normalizers.Lowercase()
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
        trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    [(ids, ends)] = token_ends(tokenizer, [TEXTS[0]])
    assert max(ends) == len(TEXTS[0]) and len(ids) - 1 <= len(ends)  # a mark may stand alone before the first letter
    for end, i in ends.items():
        pieces = tokenizer.convert_ids_to_tokens(ids[: i + 1])
        assert "".join(pieces).replace("▁", " ").strip().lower() == TEXTS[0][:end].strip().lower()


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(
        sf.DataError, match="A ByT5Tokenizer does not say at which characters its tokens end, so they ca"
    ):
        token_ends(ByT5Tokenizer(), ["a"])
