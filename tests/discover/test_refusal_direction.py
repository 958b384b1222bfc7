"""The refusal direction: a planted one is found; every score against plain hooks; choosing, and refusing to choose."""

import math

import pytest
import torch
from families import build
from words import words

import steerfn as sf
from steerfn.datasets._held_out import held_out
from steerfn.discover._refusal_direction import Score, best

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}v w assistant{% endif %}"
)
HARMFUL = ["x a b", "c y", "d e x", "y f g h", "i x j", "k y", "y l m", "n x"]
HARMLESS = ["a b c", "d e", "f g h", "i j k l", "m n", "b d f", "o p", "q r s", "t"]
PLANT = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
QUIET = {"progress": False}
OPTIONS = {"refusal_phrases": ["z a", "z"], **QUIET}


def chat():
    tokenizer = words(template=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def planted():
    """A Llama in which x and y write a direction that attention carries on, and that makes z the likeliest token."""
    model = build("llama")
    with torch.no_grad():

        def without(weight):
            return weight - torch.outer(weight @ PLANT, PLANT)

        for name, p in model.named_parameters():
            if "norm" in name:
                p.fill_(1.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.copy_(without(embedding))
        head.copy_(without(head))
        for word in "xy":
            embedding[chat().convert_tokens_to_ids(word)] += 3 * PLANT
        head[chat().convert_tokens_to_ids("z")] += 2 * PLANT
        for block in model.model.layers:
            for weight in (
                block.self_attn.q_proj,
                block.self_attn.k_proj,
                block.self_attn.v_proj,
                block.self_attn.o_proj,
            ):
                weight.weight.zero_()
            block.self_attn.v_proj.weight[0] = PLANT
            block.self_attn.o_proj.weight[:, 0] = 2 * PLANT
            for weight in (block.mlp.gate_proj.weight, block.mlp.up_proj.weight):
                weight.copy_(without(weight))
            block.mlp.down_proj.weight.copy_(without(block.mlp.down_proj.weight.T).T)
        model.model.layers[0].mlp.down_proj.weight.zero_()  # which the direction would change through the norm
    return model


def encoded(text):
    return torch.tensor([chat().convert_tokens_to_ids(f"<bos> user {text} v w assistant".split())])


def plain_logits(model, text, ablated=None, added=None):
    """Last logits of one prompt, with forward hooks in place of operators."""
    handles = []
    if ablated is not None:
        u = ablated / ablated.norm()

        def without(module, args):
            return (args[0] - (args[0] @ u).unsqueeze(-1) * u, *args[1:])

        for block in model.model.layers:
            handles.append(block.register_forward_pre_hook(without))
            handles.append(block.self_attn.register_forward_hook(lambda m, a, o: (strip(o[0], u), *o[1:])))
            handles.append(block.mlp.register_forward_hook(lambda m, a, o: strip(o, u)))
    if added is not None:
        layer, direction = added
        handles.append(model.model.layers[layer].register_forward_pre_hook(lambda m, a: (a[0] + direction, *a[1:])))
    try:
        with torch.no_grad():
            return model(encoded(text)).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()


def strip(state, u):
    return state - (state @ u).unsqueeze(-1) * u


def log_odds(logits):
    p = logits.softmax(-1)[chat().convert_tokens_to_ids("z")]
    return (p / (1 - p)).log().item()


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def sides(seed=0, part=0.2):
    """Train and test texts of both sides."""
    found = []
    for texts in (HARMFUL, HARMLESS):
        out = held_out(texts, part, seed)
        found += [[t for t, o in zip(texts, out, strict=True) if o is side] for side in (False, True)]
    return found


def test_the_planted_direction_is_found_and_steers():
    model = planted()
    v = sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, **OPTIONS)
    assert v.sites == (sf.resid_pre[1],)  # before the first block the template's tokens know nothing of the request
    assert torch.cosine_similarity(v[sf.resid_pre[1]], PLANT, dim=0) > 0.99
    without, added = sf.ablate(sf.discover.spread(v, v.metadata["ablated_at"])), sf.add(v)
    for text, op, refuses in (("x t", None, True), ("x t", without, False), ("t p", None, False), ("t p", added, True)):
        with torch.no_grad():
            logits = (model(encoded(text)) if op is None else sf.functional(model)(op, encoded(text))).logits[0, -1]
        assert (chat().decode([int(logits.argmax())]) == "z") is refuses, text


def test_every_score_equals_plain_hooks():
    model = planted()
    v = sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, sites=sf.resid_pre[1:3], **OPTIONS)
    bad, bad_test, good, good_test = sides()
    about = v.metadata
    assert [(s["site"], s["position"]) for s in about["scores"]] == [
        (f"resid_pre[{layer}]", position) for position in (-3, -2, -1) for layer in (1, 2)
    ]
    for score in about["scores"]:
        site, position = sf.Site.parse(score["site"]), score["position"]
        means = []
        for texts in (bad, good):
            states = []
            for text in texts:
                with torch.no_grad():
                    out = model(encoded(text), output_hidden_states=True)
                states.append(out.hidden_states[site.layer][0, position].double())
            means.append(torch.stack(states).mean(0))
        direction = (means[0] - means[1]).float()
        if (site.name, position) == (v.sites[0].name, about["position"]):
            torch.testing.assert_close(v[site], direction, rtol=1e-4, atol=1e-5)
        assert score["ablated"] == pytest.approx(
            mean(log_odds(plain_logits(model, t, ablated=direction)) for t in bad_test), abs=1e-3
        )
        assert score["induced"] == pytest.approx(
            mean(log_odds(plain_logits(model, t, added=(site.layer, direction))) for t in good_test), abs=1e-3
        )
        kl = []
        for text in good_test:
            p, q = (
                plain_logits(model, text).log_softmax(-1),
                plain_logits(model, text, ablated=direction).log_softmax(-1),
            )
            kl.append((p.exp() * (p - q)).sum().item())
        assert score["kl"] == pytest.approx(mean(kl), abs=1e-4)
    assert about["baseline"]["harmful"] == pytest.approx(
        mean(log_odds(plain_logits(model, t)) for t in bad_test), abs=1e-3
    )
    assert about["baseline"]["harmless"] == pytest.approx(
        mean(log_odds(plain_logits(model, t)) for t in good_test), abs=1e-3
    )
    fit = [s for s in about["scores"] if s["kl"] <= 0.1 and s["induced"] > about["baseline"]["harmless"]]
    assert about["chosen"] == min(fit, key=lambda s: s["ablated"]) and about["chosen"]["position"] == about["position"]


def test_metadata_says_what_was_done():
    model = planted()
    about = sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, **OPTIONS).metadata
    bad, bad_test, good, good_test = sides()
    assert about["method"] == "refusal_direction" and about["model"] == sf.values.fingerprint(model, weights=True)
    assert about["counts"] == {"harmful": len(bad), "harmless": len(good)}
    assert about["held_out"] == {"harmful": len(bad_test), "harmless": len(good_test)}
    assert about["token"] == {-3: "v", -2: "w", -1: "assistant"}[about["position"]]
    assert about["refusal_tokens"] == ["z"]
    assert about["ablated_at"] == [f"{k}[{i}]" for i in range(3) for k in ("resid_pre", "resid_mid")] + [
        "resid_post[2]"
    ]


def test_a_group_of_requests_is_in_the_means_or_scores():
    """Seeds that would part the first two requests of a side do not."""
    from steerfn.discover._refusal_direction import _split

    requests = {"harmful": HARMFUL, "harmless": HARMLESS}
    labels = {side: [0, *range(len(texts) - 1)] for side, texts in requests.items()}
    apart = 0
    for seed in range(12):
        for groups in (None, labels):
            train, test = _split(requests, requests, 0.4, seed, groups)
            parted = [{requests[s][0], requests[s][1]} & set(train[s]) for s in requests]
            if groups is None:
                apart += any(len(each) == 1 for each in parted)
            else:
                assert all(len(each) in (0, 2) and test[s] for s, each in zip(requests, parted, strict=True))
    assert apart
    v = sf.discover.refusal_direction(planted(), chat(), HARMFUL, HARMLESS, groups=labels, **OPTIONS)
    assert v.metadata["counts"]["harmful"] + v.metadata["held_out"]["harmful"] == len(HARMFUL)
    with pytest.raises(sf.DataError, match="groups has 1 labels for"):
        sf.discover.refusal_direction(planted(), chat(), HARMFUL, HARMLESS, groups=[0], **OPTIONS)


def test_the_stream_of_a_parallel_block_has_no_middle():
    names = [site.name for site in sf.layout(build("gpt_neox")).stream]
    assert names == ["resid_pre[0]", "resid_pre[1]", "resid_pre[2]", "resid_post[2]"]


def test_the_positions_are_the_tokens_of_the_template_that_all_requests_share():
    """Requests that end alike add none of their own tokens."""
    model, same = planted(), [f"{text} t" for text in HARMFUL]
    about = sf.discover.refusal_direction(model, chat(), same, [f"{text} t" for text in HARMLESS], **OPTIONS).metadata
    assert {s["position"] for s in about["scores"]} == {-3, -2, -1}
    about = sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, positions=-2, **OPTIONS).metadata
    assert {s["position"] for s in about["scores"]} == {-2} and about["token"] == "w"


def test_few_forward_passes():
    model, seen = planted(), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    v = sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, sites=sf.resid_pre[1:3], **OPTIONS)
    first, candidates = len(seen), len(v.metadata["scores"])
    # Reading (rows of one text and of several, for all positions), unsteered, scoring, and trying whether texts share.
    assert candidates == 6 and first <= 2 + 2 + 3 * candidates + 5
    seen.clear()
    sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, sites=sf.resid_pre[1:3], batch_size=1, **OPTIONS)
    assert len(seen) > first


def test_the_same_call_gives_the_same_bits_and_the_model_is_untouched():
    model = planted()
    before = {name: p.clone() for name, p in model.named_parameters()}
    first, second = (sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, **OPTIONS) for _ in range(2))
    assert first.identical(second)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_options_change_the_result():
    model = planted()

    def found(**options):
        return sf.discover.refusal_direction(model, chat(), HARMFUL, HARMLESS, **(OPTIONS | options))

    base = found()
    assert found(sites=sf.resid_mid[1]).sites == (sf.resid_mid[1],)
    assert not found(held_out=0.5).allclose(base)
    assert any(not found(seed=seed).allclose(base) for seed in (1, 2))
    assert found(refusal_phrases=["z", "t"]).metadata["chosen"] != base.metadata["chosen"]
    assert found(batch_size=2).allclose(base, rtol=1e-4, atol=1e-5)


def test_conditions_exclude_candidates():
    a, b, c = (
        Score(sf.resid_pre[i], -1, *numbers) for i, numbers in enumerate([(-9, 0.2, 1), (-5, 0.05, 1), (-7, 0.01, -1)])
    )
    assert best([a, b, c], 0.1, 0.0) is b
    assert best([a, b, c], 0.3, 0.0) is a
    assert best([a, b, c], 0.1, -2.0) is c
    broken = Score(sf.resid_pre[3], -1, math.nan, math.nan, math.nan)
    assert best([broken, b], 0.1, 0.0) is b and broken.to_dict()["kl"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_kl": 1e-9, "sites": sf.resid_pre[2]},
            "changes harmless requests by a KL above max_kl=1e-09; the least is resid_pre[2] at position -",
        ),
        (
            {"min_induced": 100.0},
            "brings the refusal log-odds of harmless requests above 100 when it is added; the nearest is resid_pre[1]",
        ),
        ({"seed": None}, "`seed` must be an integer, got None."),
        ({"max_kl": 0}, "`max_kl` must be a finite number > 0, got 0."),
        ({"held_out": 1.0}, "`held_out` must be a finite number > 0 and < 1, got 1.0."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
        ({"positions": [0]}, "positions must be indices from the end of the request, such as [-1, -2], not [0]."),
        ({"positions": []}, "positions must be indices from the end of the request, such as [-1, -2], not []."),
        ({"positions": -99}, "Position -99 is outside a text of"),
        ({"refusal_phrases": "z"}, "refusal_phrases must be a list of texts such as ['I cannot'], not 'z'."),
        ({"refusal_phrases": ["Nope"]}, "No refusal phrase begins with a token that the tokenizer knows (Nope); pass"),
        ({"sites": sf.head_out[1, 0]}, "A refusal direction lies in the residual stream, not in head_out[1, 0];"),
        ({"sites": sf.resid_pre[0]}, "are the same at every position and site; read at deeper sites, or at positions"),
        ({"sites": sf.resid_pre[9]}, "resid_pre[9] is out of range"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(sf.SteerError) as caught:
        sf.discover.refusal_direction(planted(), chat(), HARMFUL, HARMLESS, **(OPTIONS | options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("harmful", "harmless", "message"),
    [
        ([], HARMLESS, "harmful is empty; pass at least one text."),
        (HARMFUL, 5, "harmless is a list of texts, not 5 of type int."),
        (["x"], HARMLESS, "harmful has 1 requests, of which none can be held out; pass at least two different ones."),
        (["x ", "X"], HARMLESS, "harmful has 2 requests, of which none can be held out;"),
    ],
)
def test_wrong_requests_are_one_sentence(harmful, harmless, message):
    with pytest.raises(sf.DataError) as caught:
        sf.discover.refusal_direction(planted(), chat(), harmful, harmless, **OPTIONS)
    assert message in str(caught.value)


def test_a_template_is_needed():
    with pytest.raises(sf.DataError, match="but this tokenizer has no chat template; set tokenizer.chat_template"):
        sf.discover.refusal_direction(planted(), words(), HARMFUL, HARMLESS, **OPTIONS)
    bare = words(template=True)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(sf.DataError, match=r"adds no tokens after the user's text .* pass positions=\[-1\]."):
        sf.discover.refusal_direction(planted(), bare, HARMFUL, HARMLESS, **OPTIONS)


def test_a_model_that_does_not_refuse_is_said_to():
    with pytest.warns(
        sf.SteerWarning, match="refuses harmful requests no more than harmless ones .* check refusal_phr"
    ):
        sf.discover.refusal_direction(planted(), chat(), HARMLESS, HARMFUL, max_kl=99.0, min_induced=-99.0, **OPTIONS)


def test_bars_are_shown_where_asked_for(capsys):
    sf.discover.refusal_direction(planted(), chat(), HARMFUL, HARMLESS, **(OPTIONS | {"progress": True}))
    said = capsys.readouterr().err
    assert "Scoring directions" in said and "Reading activations" in said
