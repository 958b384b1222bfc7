"""Transfer: exact where the truth is planted, honest where there is nothing to carry over."""

import copy
import dataclasses

import pytest
import torch
from families import build
from options import optional
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from words import NAMES, words

import steerfn as sf
from steerfn.datasets import held_out
from steerfn.discover._engine import _matched_texts
from steerfn.discover._own_vector import OwnVector
from steerfn.discover._transferred import Transferred

RANDOM = torch.Generator().manual_seed(0)
TEXTS = [" ".join(NAMES[i] for i in torch.randint(0, 96, (12,), generator=RANDOM)) for _ in range(80)]
HAPPY, SAD = [text for text in TEXTS if " w1" in text][:12], [text for text in TEXTS if " w1" not in text][:12]
SITE = sf.resid_post[1]
V = sf.SteeringVector({SITE: torch.randn(32, generator=RANDOM)})
TURN = torch.linalg.qr(torch.randn(32, 32, generator=RANDOM, dtype=torch.float64)).Q
TOKENS = words(names=NAMES)
METHODS = ["ridge", "least_squares", "orthogonal"]


def letters():
    """Another tokenizer of the same texts: one token a character."""
    characters = {c: i + 3 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789 ")}
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2} | characters, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>", pad_token="<pad>")


def rotated(model):
    """The same model with its residual stream turned: RMSNorm with weights of 1 does not see it."""
    turned, turn = copy.deepcopy(model), TURN
    with torch.no_grad():
        for name, weight in turned.named_parameters():
            if name.endswith("norm.weight"):
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_((turn @ weight.double()).float())
            else:  # what reads the stream, and the embeddings, have it as their last axis
                weight.copy_((weight.double() @ turn.T).float())
    return turned


@pytest.fixture(scope="module")
def model():
    """A model whose norms have weights of 1."""
    found = build("llama")
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
    return found


@pytest.fixture(scope="module")
def other():
    """A model of another family, with another tokenizer."""
    return build("qwen2"), letters()


@pytest.fixture(scope="module")
def turned(model):
    other = rotated(model)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    return other


def transfer(source, target, texts=TEXTS, vector=V, **options):
    return sf.transfer(vector, source, target, texts, progress=False, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_that_was_rotated(model, turned, method):
    """Planted truth: the same layer, the rotated direction, exact to 1e-4."""
    v = sf.mean_difference(model, TOKENS, HAPPY, SAD, SITE, progress=False)
    contrast = {"positive": HAPPY, "negative": SAD}
    moved = transfer((model, TOKENS), (turned, TOKENS), vector=v, method=method, **contrast)
    expected = TURN @ v[SITE].double()
    assert float((moved.vector[SITE].double() - expected).norm() / expected.norm()) < 1e-4
    assert moved.site == SITE and moved.level == "carried over" and "The fit is good: R^2 1.00" in moved.verdict
    assert min(moved.r2, moved.r2_of_variance, moved.r2_read) > 0.99999 and moved.r2_shuffled < 0.2
    assert moved.own.cosine > 0.9999 and moved.own.vector.cosine(moved.vector) == pytest.approx(moved.own.cosine)
    other = transfer((model, TOKENS), (turned, TOKENS), method=method, **contrast)  # not what these texts differ in
    torch.testing.assert_close(other.vector[SITE].double(), TURN @ V[SITE].double(), rtol=1e-4, atol=1e-4)
    assert other.level == "like random" and other.own.cosine == pytest.approx(V.cosine(v), abs=1e-3)


def test_the_same_model_to_itself(model):
    moved = transfer((model, TOKENS), (model, TOKENS), vector=V.with_metadata(method="mine"))
    assert moved.site == SITE and moved.level == "fit only"
    torch.testing.assert_close(moved.vector[SITE], V[SITE], rtol=1e-4, atol=1e-4)
    about = moved.vector.metadata
    assert about["model"] == sf.values.fingerprint(model, weights=True) == about["from"]["model"]
    assert (about["method"], about["map"], about["from"]["method"]) == ("transfer", "ridge", "mine")
    assert about["texts"]["count"] == 80 and about["texts"]["tokens"] + about["held_out"]["tokens"] == 80 * 12
    sf.values.check_match(moved.vector, model, strict=True)


def test_a_map_made_by_hand(model, other):
    """Between unlike models and tokenizers: least squares over the tokens that end words, text by text."""
    moved = transfer((model, TOKENS), other, method="least_squares", sites=[0, 2])
    x, y, kept = [], [], []
    out = held_out(TEXTS, 0.2, 0)
    for text, judges in zip(TEXTS, out, strict=True):
        own = sf.capture(model, SITE)(TOKENS(text, return_tensors="pt")["input_ids"])[1][SITE][0, 1:]  # but <bos>
        at = [i - 1 for i in range(1, len(text) + 1) if i == len(text) or text[i] == " "]
        his = sf.capture(other[0], moved.site)(other[1](text, return_tensors="pt")["input_ids"])[1][moved.site][0, at]
        x.append(own.detach().double())
        y.append(his.detach().double())
        kept += [not judges] * len(at)
    x, y, kept = torch.cat(x), torch.cat(y), torch.tensor(kept)
    a, b = (each[kept] - each[kept].mean(0) for each in (x, y))
    expected = V[SITE].double() @ torch.linalg.lstsq(a, b).solution
    torch.testing.assert_close(
        moved.vector[moved.site].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
    predicted = (x[~kept] - x[kept].mean(0)) @ torch.linalg.lstsq(a, b).solution + y[kept].mean(0)
    left = (y[~kept] - predicted).square().sum(0) / (y[~kept] - y[~kept].mean(0)).square().sum(0)
    assert moved.r2 == pytest.approx(float(1 - left.mean()), abs=1e-4)


def test_sinks_of_either_model_are_left_out(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        sink = TOKENS.convert_tokens_to_ids("w5")
        other.model.embed_tokens.weight[sink] = 40 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    texts = [f"{text} w5 {other_text}" for text, other_text in zip(TEXTS[::2], TEXTS[1::2], strict=True)] + ["w5"]
    matched = _matched_texts.match_texts((model, TOKENS), (other, TOKENS), texts)
    assert all(read.ids[i] != sink for pair in matched for read in pair for i in read.where)
    assert any(sink in pair[0].ids[1:-1] for pair in matched) and not matched[-1][0].where
    assert [pair[0].where for pair in matched] == [pair[1].where for pair in matched]


def test_texts_are_shuffled_whole(model):
    matched = _matched_texts.match_texts((model, TOKENS), (model, TOKENS), TEXTS + ["a b", "c d e"])
    shuffled = _matched_texts.shuffle_texts(matched, 0)
    assert all(first.ids != second.ids and len(first.where) == len(second.where) for first, second in shuffled)
    assert sorted(read.ids for read, _ in shuffled) == sorted(read.ids for _, read in shuffled)


@pytest.mark.parametrize("numbers", [1, 4000])
def test_no_chunk_batch_or_order_changes_the_vector(model, other, monkeypatch, numbers):
    source, target = (model, TOKENS), other
    whole = transfer(source, target, TEXTS[:30])
    monkeypatch.setattr(_matched_texts, "NUMBERS", numbers)
    parts = transfer(source, target, TEXTS[29::-1] + TEXTS[:3], batch_size=3)
    assert whole.site == parts.site and parts.r2 == pytest.approx(whole.r2, abs=1e-4)
    torch.testing.assert_close(whole.vector[whole.site], parts.vector[whole.site], rtol=1e-3, atol=1e-3)


def test_nothing_to_carry_over(model):
    """A target that reads no word: every token is the unknown one."""
    moved = transfer((model, TOKENS), (model, words(names=["none"])))
    assert moved.level == "no fit" and moved.verdict.startswith("No fit: R^2 ")


def test_fewer_texts_than_dimensions(model):
    """Said, and a ridge all the same; least squares is refused."""
    with pytest.warns(
        sf.SteerWarning, match="tokens make the map, not more than the 32 dimensions of the source: what"
    ):
        moved = transfer((model, TOKENS), (model, TOKENS), ["a b c d", "w7 w8 w9 w2", "e f w3", "w1 w9 d"])
    assert moved.notes and moved.notes[0] in str(moved) and moved.notes[0] in moved.to_markdown()
    assert torch.isfinite(moved.vector[moved.site]).all()
    with pytest.raises(sf.DataError, match="so least squares has no single answer; pass more texts, or method='ridge'"):
        transfer((model, TOKENS), (model, TOKENS), ["a b c d", "w7 w8 w9 w2", "e f w3"], method="least_squares")


@pytest.mark.parametrize("kind", ["attn_out", "resid_pre"])
def test_other_kinds_of_sites_stay_what_they_are(model, turned, kind):
    v = sf.SteeringVector({getattr(sf, kind)[-2]: V[SITE]})
    moved = transfer((model, TOKENS), (turned, TOKENS), vector=v)
    assert moved.source == moved.site == getattr(sf, kind)[1]
    torch.testing.assert_close(moved.vector[moved.site].double(), TURN @ V[SITE].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [16, 48])
@pytest.mark.parametrize("method", METHODS)
def test_widths_that_differ(model, width, method):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2}
    other = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    moved = transfer((model, TOKENS), (other, TOKENS), method=method)
    assert moved.vector.d_model == width and len(moved.fits) == 2 and moved.r2 > moved.r2_shuffled


def made(**changes):
    """A transfer with given numbers."""
    numbers = {"r2": 0.6, "r2_of_variance": 0.7, "r2_read": 0.8, "r2_shuffled": 0.0}
    own = OwnVector(V, 0.4, 0.01, tuple(i / 500 - 0.2 for i in range(199)), 0.9, None, (0.5,) * 199)
    about = {"map": "ridge", "penalty": 0.1, "texts": {"tokens": 900}}
    found = Transferred(V.with_metadata(**about), sf.resid_post[0], ((SITE, 0.5),), own=own, **numbers)
    return dataclasses.replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "level", "words_"),
    [
        (
            {},
            "carried over",
            "Carried over: cosine 0.40 with the target's own vector (p = 0.005 against random vectors",
        ),
        ({"r2": 0.3}, "carried over", "The fit is poor: R^2 0.30 on held-out texts, 0.00 where texts are shuffled."),
        (
            {"own": None},
            "fit only",
            "Fit only: what the vector does in the target was not measured; pass positive= and",
        ),
        ({"r2": 0.12, "r2_shuffled": 0.1}, "no fit", "No fit: R^2 0.12 on held-out texts, 0.10 where texts are"),
        ({"r2": -0.2, "r2_shuffled": -0.9}, "no fit", "No fit: R^2 -0.20"),
        ({"r2": float("nan")}, "no fit", "No fit: R^2 nan"),
        (
            {"own": dataclasses.replace(made().own, cosine=0.1)},
            "like random",
            "Like random: cosine 0.10 with the target",
        ),
        (
            {"own": dataclasses.replace(made().own, cosine=-0.4)},
            "like random",
            "Like random: cosine -0.40 with the tar",
        ),
    ],
)
def test_the_verdict_follows_a_rule(changes, level, words_):
    found = made(**changes)
    assert found.level == level and words_ in found.verdict and str(found).startswith(found.verdict)


def test_p_counts_either_sign():
    own = made().own
    assert own.p == 1 / 200
    near = dataclasses.replace(own, cosine=0.15)
    assert near.p == (1 + sum(abs(each) >= 0.15 for each in own.cosines_random)) / 200 > 0.05


OPTIONS = {
    "method": ("ridge", "orthogonal"),
    "sites": (None, 2),
    "negative": (SAD, SAD[1:]),
    "positive": (HAPPY, HAPPY[1:]),
    "position": (None, "mean"),
    "held_out": (0.2, 0.4),
    "draws": (5, 6),
    "seed": (0, 1),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_pitfall_26_an_option_changes_the_result(model, other, option):
    given = {"positive": HAPPY, "negative": SAD, "draws": 5}
    first, second = (
        transfer((model, TOKENS), other, TEXTS[:40], **given | {option: value}) for value in OPTIONS[option]
    )
    assert first.to_json() != second.to_json()


def test_pitfall_26_no_option_is_left_out():
    assert optional(sf.transfer) - set(OPTIONS) <= {"progress", "batch_size"}  # the order of batches: above


def test_contrast_texts_are_read_as_the_vector_says(model, other):
    said = V.with_metadata(position="mean")
    moved = [
        transfer((model, TOKENS), other, TEXTS[:40], vector, positive=HAPPY, negative=SAD, draws=5, position=position)
        for vector, position in ((said, None), (V, "mean"), (V, None))
    ]
    assert [each.own.vector.metadata["position"] for each in moved] == ["mean", "mean", "last"]
    pairs = sf.datasets.ContrastSet("mine", HAPPY, SAD, paired=True)
    again = transfer((model, TOKENS), other, TEXTS[:40], positive=pairs, draws=5)
    assert again.own.to_dict() == moved[2].own.to_dict()


BAD = {
    "no pair": (lambda m: transfer(m, (m, TOKENS)), r"source must be a pair \(model, tokenizer\), not a LlamaFor"),
    "no model": (lambda m: transfer((m, TOKENS), ("gpt2", TOKENS)), "A model is a torch module such as transformers'"),
    "the wrong way round": (
        lambda m: transfer((TOKENS, m), (m, TOKENS)),
        "which is a model, stands where the tokenize",
    ),
    "a slow tokenizer": (lambda m: transfer((m, ByT5Tokenizer()), (m, TOKENS)), "does not say at which characters its"),
    "no vector": (lambda m: transfer((m, TOKENS), (m, TOKENS), vector=V[SITE]), "transfer takes a SteeringVector"),
    "two sites": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), vector=V + sf.SteeringVector({0: V[SITE]})),
        r"transfer moves one direction, but this vector has 2: resid_post\[1\], resid_post\[0\]; choose one with v.sel",
    ),
    "a head": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), vector=sf.SteeringVector({sf.head_out[1, 0]: torch.ones(8)})),
        r"and head_out\[1, 0\] is inside an attention head; use",
    ),
    "a head in the target": (lambda m: transfer((m, TOKENS), (m, TOKENS), sites=sf.head_out[1, 0]), "inside an attent"),
    "a layer that is not there": (lambda m: transfer((m, TOKENS), (m, TOKENS), sites=9), "resid_post"),
    "a vector of another width": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), vector=sf.SteeringVector({SITE: torch.ones(8)})),
        "The vector has width 8",
    ),
    "a zero vector": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), vector=0 * V),
        r"The vector is zero at resid_post\[1",
    ),
    "a method": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), method="lasso"),
        "method must be one of ridge, least_squ",
    ),
    "a part": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), held_out=1),
        "`held_out` must be a finite number > 0 and <",
    ),
    "draws": (lambda m: transfer((m, TOKENS), (m, TOKENS), draws=0), "`draws` must be a positive integer, got 0"),
    "a batch size": (lambda m: transfer((m, TOKENS), (m, TOKENS), batch_size=0), "`batch_size` must be a positive int"),
    "one side": (lambda m: transfer((m, TOKENS), (m, TOKENS), negative=SAD), "positive is missing: pass texts that"),
    "the other side": (lambda m: transfer((m, TOKENS), (m, TOKENS), positive=HAPPY), "negative is missing"),
    "a conversation": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), [*TEXTS, [{"role": "user", "content": "a"}]]),
        r"texts\[80\] is a conversation or token ids, and tokens of two models are matched by the characters of",
    ),
    "no texts": (lambda m: transfer((m, TOKENS), (m, TOKENS), []), "texts is empty"),
    "one text": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), [TEXTS[0], TEXTS[0].upper().lower()]),
        "12, 0 and 0 tokens",
    ),
    "no position in common": (
        lambda m: transfer((m, TOKENS), (m, no_ends()), TEXTS),
        "0, 0 and 0 tokens that end at the same character in both models, attention sinks left out, make the map",
    ),
    "a keyword": (
        lambda m: transfer((m, TOKENS), (m, TOKENS), layer=1),
        "transfer has no option 'layer'; did you mean",
    ),
}


def no_ends():
    """A tokenizer whose tokens end before the last letter of a word, so never where a word ends."""
    made_ = letters()
    inner = made_.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=\S)\s|\S(?=\s|$)"), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_before_the_models_run(model, case):
    """But where it takes the models' sinks to know."""
    call, message = BAD[case]
    runs = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(sf.SteerError, match=message):
        call(model)
    handle.remove()
    assert not runs or case in ("one text", "no position in common")


def test_a_vector_of_another_model_warns(model):
    another = V.with_metadata(model={"name": "another", "fingerprint": "0" * 16, "d_model": 32, "n_layers": 3})
    with pytest.warns(sf.SteerWarning, match="their architectures differ"):
        transfer((model, TOKENS), (model, TOKENS), vector=another)


def test_models_stay_as_they_are_and_bars_are_shown(model, capsys):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sf.transfer(V, (model, TOKENS), (model, TOKENS), TEXTS)
    assert "Reading two models" in capsys.readouterr().err
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
