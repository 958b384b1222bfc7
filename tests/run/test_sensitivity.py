"""Sensitivity: slopes are central finite differences of steered log-probabilities, at every site and both ways.

The differences are taken prompt by prompt without padding. GPT-2 and OPT compute all in float64, so they are precise
there; norms and rotary tables of other families go through float32.
"""

import dataclasses
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import build
from options import assert_changes, optional
from snapshot import same_bits, unchanged
from steering import sites_of, vector_at
from words import words

import steerfn as sf
from steerfn.run._slopes import _attention

# torch 2.13 does this when it loads its rules for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

PROMPTS = ["a b c", "d", "e f g h i j", "k l"]
PAIRS = [(" x", " y"), (" z a", " y"), (" b c d", " e f"), (" u", " v w")]
QUIET = {"progress": False}
MODES = ("reverse", "forward")
modes = pytest.mark.parametrize("mode", MODES)
DOCS = Path(__file__).parents[2] / "docs" / "guides"


def slopes(model, v, prompts=PROMPTS, targets=PAIRS, **options):
    return sf.sensitivity(model, words(), v, prompts, targets, **QUIET, **options)


def log_odds(model, op, prompt, texts):
    """What is differentiated, from a plain forward of one row a target."""
    total, tokenizer = 0.0, words()
    for sign, text in zip((1, -1), texts, strict=False):
        ids = tokenizer(prompt + text, return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            out = sf.functional(model)(op, ids, use_cache=False, prompt_length=start).logits
        p = out[0].double().log_softmax(-1)
        total = total + sign * sum(p[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
    return total


def differences(model, v, h, prompts=PROMPTS, targets=PAIRS, scope=sf.everywhere):
    """Central finite differences in alpha, `[sites, prompts]`, one site and one prompt at a time."""

    def at(site, alpha, prompt, texts):
        return log_odds(model, sf.at(scope, sf.add(v.select(site), alpha)), prompt, texts)

    return torch.tensor(
        [
            [(at(s, h, p, t) - at(s, -h, p, t)).item() / (2 * h) for p, t in zip(prompts, targets, strict=True)]
            for s in sorted(v.sites, key=lambda s: s.order)
        ],
        dtype=torch.float64,
    )


def double(family):
    """A model as it loads, in float64: attention stays what transformers chooses."""
    # Gemma 2's own attention goes through float32, where the lowest float64, its mask, is infinite.
    return build(family).to(torch.float32 if family == "gemma2" else torch.float64)


def at_every_kind(model, scale=0.3):
    """A vector at some site of every kind that the model has, and at the output of every block."""
    wanted = [s for s in sites_of(model) if s.kind == "resid_post" or s.layer == 1]
    return vector_at(model, wanted, scale=scale).to(torch.float64)


@modes
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3", "gpt_neox", "opt", "olmo2", "phi"])
def test_it_equals_finite_differences_at_every_site(family, mode):
    """Ragged prompts and targets in one padded batch, fused attention where the family has it."""
    model = double(family)
    v = at_every_kind(model)
    found = slopes(model, v, mode=mode)
    assert {"resid_pre", "resid_post", "attn_out", "mlp_out", "head_out"} <= {site.kind for site in found.sites}
    exact = family in ("gpt2", "opt")
    step, near = (1e-6, {"rtol": 1e-5, "atol": 1e-7}) if exact else (1e-2, {"rtol": 2e-3, "atol": 1e-3})
    torch.testing.assert_close(found.values, differences(model, v, step), **near)
    for i, (prompt, texts) in enumerate(zip(PROMPTS, PAIRS, strict=True)):
        assert found.baseline[i].item() == pytest.approx(log_odds(model, sf.identity, prompt, texts).item(), abs=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "bloom", "mamba"])
def test_the_way_back_needs_no_forward_rules(family):
    """Experts, autograd functions of the model's own, a recurrent state."""
    model = build(family)
    v = vector_at(model, sf.resid_post[:].resolve(3), scale=0.1)
    torch.testing.assert_close(slopes(model, v).values, differences(model, v, 3e-2), rtol=2e-2, atol=2e-3)


@modes
@pytest.mark.parametrize(
    "scope",
    [sf.prompt, sf.generated, sf.last_prompt_token, ~sf.prompt, sf.positions(0), sf.positions(-1, 1)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The scope .* selected no token:steerfn.SteerWarning")  # of a row alone, not here
def test_scopes(scope, mode):
    model = double("gpt2")
    v = vector_at(model, [sf.resid_post[0], sf.attn_out[1], sf.resid_pre[2]]).to(torch.float64)
    found = slopes(model, v, scope=scope, mode=mode)
    torch.testing.assert_close(found.values, differences(model, v, 1e-4, scope=scope), rtol=1e-5, atol=1e-7)
    assert found.values.count_nonzero() and found.scope == repr(scope)


def test_one_target_for_each_prompt_or_for_all(tiny):
    v = vector_at(tiny, [sf.resid_post[0], sf.resid_post[1]])
    first, second = (slopes(tiny, v, targets=[text] * 4) for text in (" x", " y z"))
    assert torch.equal(first.values, slopes(tiny, v, targets=" x").values)
    together, each = slopes(tiny, v, targets=(" x", " y z")), slopes(tiny, v, targets=[[" x", " y z"]] * 4)
    assert torch.equal(together.values, each.values)
    torch.testing.assert_close(together.values, first.values - second.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.baseline, first.baseline - second.baseline, rtol=1e-4, atol=1e-5)
    expected = differences(tiny, v, 1e-2, targets=[(" x",)] * 4)
    torch.testing.assert_close(first.values, expected, rtol=1e-2, atol=2e-3)
    assert first.quantity == "log p(target)" and together.quantity == "(log p(positive) - log p(negative))"


def test_one_prompt_may_be_a_text(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    one, several = slopes(tiny, v, prompts="a b c", targets=" x"), slopes(tiny, v, targets=" x")
    torch.testing.assert_close(one.values, several.values[:, :1], rtol=1e-4, atol=1e-5)


def test_one_direction_is_tried_in_every_layer(tiny):
    for site in (sf.resid_post[1], sf.head_out[2, 3], sf.attn_out[-1]):
        v = vector_at(tiny, site)
        found = slopes(tiny, v)
        layers = [sf.Site(site.kind, layer, site.head) for layer in range(3)]
        assert found.sites == tuple(layers)
        moved = sf.SteeringVector({each: v.directions[0] for each in layers})
        assert torch.equal(found.values, slopes(tiny, moved).values)
        chosen = slopes(tiny, v, sites=layers[:1])
        assert chosen.sites == (layers[0],)
        torch.testing.assert_close(chosen.values, found.values[:1])


def test_several_directions_are_taken_one_at_a_time(tiny):
    sites = [sf.mlp_out[2], sf.resid_post[0], sf.attn_out[1]]
    v = vector_at(tiny, sites)
    found = slopes(tiny, v)
    assert found.sites == (sf.resid_post[0], sf.attn_out[1], sf.mlp_out[2])  # as in a forward pass
    for site in sites:
        alone = slopes(tiny, v.select(site), sites=site)
        torch.testing.assert_close(found[site], alone[site], rtol=1e-4, atol=1e-5)
    assert slopes(tiny, v, sites=sites[:2]).sites == (sf.resid_post[0], sf.mlp_out[2])
    torch.testing.assert_close(slopes(tiny, 2 * v).values, 2 * found.values)


@modes
def test_one_forward_pass_for_all_sites_and_prompts(tiny, mode):
    passes = []
    tiny.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    v = vector_at(tiny, sites_of(tiny, "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))
    assert len(slopes(tiny, v, mode=mode)) == 15 and len(passes) == 1


@modes
def test_pitfall_2_batches_of_any_size_agree(tiny, mode):
    v = vector_at(tiny, [sf.resid_post[0], sf.resid_post[2]])
    alone = slopes(tiny, v, batch_size=1, mode=mode)
    for size in (2, 3, "auto"):
        found = slopes(tiny, v, batch_size=size, mode=mode)
        torch.testing.assert_close(found.values, alone.values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.baseline, alone.baseline, rtol=1e-4, atol=1e-5)


def test_targets_of_one_token_share_the_run_of_their_prompt(tiny):
    shapes = []
    tiny.model.embed_tokens.register_forward_hook(lambda _, args, out: shapes.append(tuple(args[0].shape)))
    v = vector_at(tiny, sf.resid_post[1])
    slopes(tiny, v, targets=(" x", " y"))
    slopes(tiny, v, targets=(" x", " y z"))
    assert shapes == [(4, 7), (8, 8)]  # the beginning of text, six words, and the tokens before the last of a target


@modes
def test_the_model_is_untouched(mode):
    model = build("llama")
    model.generate(torch.tensor([[1, 3]]), max_new_tokens=1)  # what transformers sets up once
    v, flags = vector_at(model, sf.resid_post[1]), torch.backends.cuda.flash_sdp_enabled()
    with unchanged(model):
        slopes(model, v, mode=mode)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa" and torch.backends.cuda.flash_sdp_enabled() == flags


def test_forward_mode_leaves_the_attention_of_other_threads_alone(tiny):
    """Another thread attends while this one differentiates."""
    ids, other = torch.arange(3, 40).reshape(1, -1), build("llama")
    with torch.no_grad():
        before, found = other(ids).logits, []

    def elsewhere(*_):
        def run():
            with torch.no_grad():
                found.append(other(ids).logits)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    tiny.model.layers[1].self_attn.register_forward_hook(elsewhere)
    slopes(tiny, vector_at(tiny, sf.resid_post[0]), mode="forward")
    assert found and all(same_bits(each, before) for each in found)


@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "added"])
def test_attention_by_its_formula_is_that_of_torch(masked):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, generator=random) for heads in (4, 2, 2))
    mask = torch.rand(2, 1, 5, 5, generator=random) > 0.4
    mask[..., 0] = True
    added = torch.zeros(2, 1, 5, 5).masked_fill(~mask, -torch.inf)
    options = {
        "none": {},
        "causal": {"is_causal": True, "scale": 0.3},
        "boolean": {"attn_mask": mask},
        "added": {"attn_mask": added, "scale": 0.7},
    }[masked]
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    torch.testing.assert_close(_attention(q, k, v, enable_gqa=True, **options), expected)


@modes
def test_padding_that_sees_nothing_spreads_no_nan(mode):
    """Under a window of 4 the last pads of a short row see padding only."""
    model = build("mistral_sliding")
    v = vector_at(model, [sf.resid_post[0], sf.resid_post[1]], scale=0.3)
    prompts = ["a", "b c d e f g h i j k l m n"]
    found = slopes(model, v, prompts, " x", mode=mode)
    expected = differences(model, v, 1e-2, prompts, [(" x",)] * 2)
    torch.testing.assert_close(found.values, expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@modes
def test_gradients_may_be_off_outside(tiny, mode, outside):
    v = vector_at(tiny, sf.resid_post[1])
    expected = slopes(tiny, v)
    with outside():
        found = slopes(tiny, v, mode=mode)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
    assert not found.values.requires_grad and not found.values.is_inference()


def test_pitfall_14_half_precision(tiny):
    v = vector_at(tiny, sf.resid_post[1])
    exact = slopes(tiny, v)
    for mode in MODES:
        found = slopes(build("llama").to(torch.bfloat16), v, mode=mode)
        assert found.values.dtype == torch.float64 and found.sites == exact.sites
        torch.testing.assert_close(found.values, exact.values, rtol=0.1, atol=0.2)


def test_conversations_and_templates(tiny):
    tokenizer, v = words(template=True), vector_at(tiny, sf.resid_post[1])
    by_default, said = (
        sf.sensitivity(tiny, tokenizer, v, prompts, " x", **QUIET)
        for prompts in (["a b"], [[{"role": "user", "content": "a b"}]])
    )
    written = sf.sensitivity(tiny, tokenizer, v, ["user a b assistant"], " x", chat=False, **QUIET)
    assert torch.equal(by_default.values, said.values)
    torch.testing.assert_close(by_default.values, written.values)


# -- the result -------------------------------------------------------------------------------------


def made(values, sites=None, scope=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    sites = tuple(sf.resid_post[i] for i in range(len(values))) if sites is None else sites
    return sf.run.Sensitivity(values, torch.zeros(values.shape[1], dtype=torch.float64), sites, "log p(target)", scope)


def test_the_table_holds_means_and_standard_errors():
    values = np.random.default_rng(0).normal(size=(3, 7))
    found = made(values)
    means, errors = values.mean(1), values.std(1, ddof=1) / np.sqrt(7)
    for (site, mean, error), layer in zip(found, range(3), strict=True):
        assert site == sf.resid_post[layer] and mean == pytest.approx(means[layer])
        assert error == pytest.approx(errors[layer])
    assert len(found) == 3 and found[1].tolist() == values[1].tolist()


def test_pitfall_28_one_prompt_has_no_error():
    found = made([[1.0], [-2.0]])
    assert [row[1:] for row in found] == [(1.0, None), (-2.0, None)]
    assert str(found).splitlines()[0] == "d log p(target) / d alpha at alpha = 0, 1 prompt"
    assert repr(found) == "Sensitivity(2 sites, 1 prompt, strongest resid_post[1]: -2)"


def test_rankings_and_their_ties():
    found = made([[1.0, 2.0], [-3.0, -3.0], [0.0, 1.0], [2.0, 1.0]])
    assert [site.layer for site in found.ranking()] == [1, 0, 3, 2]
    assert [site.layer for site in found.ranking(by="mean")] == [0, 3, 2, 1]


def test_it_prints_as_an_aligned_table():
    sites = (sf.resid_post[9], sf.head_out[10, 3], sf.resid_post[10])
    found = made([[2.0, 1.0], [-2.9, -3.1], [0.0, 0.0]], sites, "prompt")
    first, head, *lines = str(found).splitlines()
    assert first == "d log p(target) / d alpha at alpha = 0, 2 prompts, scope prompt"
    assert len({len(line.removesuffix("  <- strongest")) for line in [head, *lines]}) == 1
    assert [line.endswith("  <- strongest") for line in lines] == [False, True, False]
    assert [line.count("█") for line in lines] == [10, 20, 0]
    assert "+1.5         0.5" in lines[0] and "-3         0.1" in lines[1]
    assert str(made([[0.0]]))  # nothing to scale by


def test_as_json_and_as_a_data_frame(tiny):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    found = slopes(tiny, vector_at(tiny, sf.resid_post[1]), scope=sf.prompt)
    told = json.loads(found.to_json())
    assert told["quantity"] == found.quantity and told["scope"] == "prompt"
    assert told["baseline"] == found.baseline.tolist() and list(told["sites"]) == [site.name for site in found.sites]
    for site, mean, error in found:
        assert told["sites"][site.name] == {"mean": mean, "standard_error": error, "values": found[site].tolist()}
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.index) == [site.name for site in found.sites]
    assert frame["mean"].tolist() == [mean for _, mean, _ in found] and frame["layer"].tolist() == [0, 1, 2]
    assert frame["standard_error"].tolist() == [error for _, _, error in found]


def test_without_pandas_the_error_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sf.SteerError, match="to_pandas needs pandas, which is not installed: pip install pandas."):
        made([[1.0]]).to_pandas()


def test_the_result_is_immutable():
    found = made([[1.0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.values = None
    found[0].zero_()
    assert found.values.item() == 1.0


class Kernel(torch.autograd.Function):
    """The activation of a fused kernel, as many packages bring it: with a way back and no rule for forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        p = x.sigmoid()
        return gradient * p * (1 + x * (1 - p))


class Fused(torch.nn.Module):
    def forward(self, x):
        return Kernel.apply(x)


def fused():
    model = build("llama")
    model.model.layers[2].mlp.act_fn = Fused()
    return model


def test_the_way_back_goes_through_kernels_of_others(tiny):
    torch.testing.assert_close(slopes(fused(), V).values, slopes(tiny, V).values, rtol=1e-4, atol=1e-5)


# -- errors and options -----------------------------------------------------------------------------

V = vector_at(build("llama"), sf.resid_post[1])
TWO = vector_at(build("llama"), [sf.resid_post[0], sf.resid_post[1]])
HEAD = vector_at(build("llama"), sf.head_out[1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: slopes(m, torch.ones(32)), "sensitivity takes a SteeringVector, not a Tensor"),
        (lambda m: sf.sensitivity(m, V, V, "a", " x"), "A transformers tokenizer is needed, not SteeringVector("),
        (lambda m: slopes(m, 0 * V), "The vector is zero at all its sites, so no strength changes anything"),
        (lambda m: slopes(m, V, mode="back"), "mode is 'reverse' or 'forward', not 'back'."),
        (lambda m: slopes(m, V, chat="yes"), "chat is True, False or None, not 'yes'."),
        (
            lambda m: slopes(m, V, batch_size=0),
            "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device.",
        ),
        (
            lambda m: slopes(m, V, batch_size="all"),
            "`batch_size` must be a positive integer, got 'all'; 'auto' fits batches to the device.",
        ),
        (lambda m: slopes(m, V, scope="prompt"), "A scope is needed, not 'prompt' of type str"),
        (lambda m: slopes(m, V, prompts=[]), "prompts is empty; pass at least one text."),
        (lambda m: slopes(m, V, prompts=["a", " "]), "prompts[1] is empty (' ')"),
        (
            lambda m: slopes(m, V, targets=7),
            "targets is a text, a pair (positive, negative), or a list of these, not a ",
        ),
        (lambda m: slopes(m, V, targets=[" x", " y"]), "There are 2 targets for 4 prompts; pass one for each, or one "),
        (lambda m: slopes(m, V, prompts="a", targets=[3]), "targets[0] is 3; pass a text, or a pair of texts (positiv"),
        (lambda m: slopes(m, V, targets=(" x", " y", " z")), "targets[0] has 3 texts; a pair is (positive, negative)."),
        (lambda m: slopes(m, V, targets=(" x",)), "targets[0] has 1 texts; a pair is (positive, negative)."),
        (
            lambda m: slopes(m, V, prompts=["a", "b"], targets=[" x", (" y", " z")]),
            "targets[0] is ' x' and targets[1] is (' y', ' z'); pass texts or pairs, not both",
        ),
        (lambda m: slopes(m, V, targets=(" x", "  x")), "targets[0] sets ' x' against itself; pass two texts that "),
        (lambda m: slopes(m, V, targets=""), "The continuation of prompts[0] is ''; pass a text that is not empty."),
        (
            lambda m: slopes(m, V, targets=" "),
            "The tokens of prompts[0] cannot be divided into prompt and continuation",
        ),
        (lambda m: slopes(m, V, sites=7), "resid_post[7] is out of range"),
        (
            lambda m: slopes(m, TWO, sites=2),
            "This vector has no direction at resid_post[2]; it has resid_post[0], resid_post[1]. Pass sites among "
            "these, or a vector with one direction, v.select(site), which can be tried anywhere.",
        ),
        (
            lambda m: slopes(m, HEAD, sites=1),
            "The direction has width 8, but LlamaForCausalLM has width 32 at resid_post[1]; pass sites of the width "
            "that the vector was made at (head_out[1, 2]).",
        ),
        (lambda m: slopes(m, V).ranking(by="size"), "Sites are ranked by 'magnitude' or by 'mean', not by 'size'."),
        (lambda m: slopes(m, TWO)[2], "There is no slope at 2; it has resid_post[0], resid_post[1]."),
        (
            lambda m: slopes(fused(), V, mode="forward"),
            "This model does something that has no forward-mode rule under vmap (",
        ),
    ],
)
def test_errors_by_their_text(tiny, call, message):
    with pytest.raises(sf.SteerError) as caught:
        call(tiny)
    assert message in str(caught.value)


def test_a_slope_that_is_no_number(tiny):
    tiny.lm_head.weight.data[5] = torch.inf
    with pytest.raises(
        sf.DataError, match=r"The slope at resid_post\[0\] for prompts\[0\] is nan; load the model in fl"
    ):
        slopes(tiny, V)


def test_a_model_without_gradients(tiny):
    forward = tiny.lm_head.forward
    tiny.lm_head.forward = torch.no_grad()(forward)
    with pytest.raises(sf.ModelError, match="computes its logits without gradients, .* pass mode='forward'"):
        slopes(tiny, V)


def test_a_vector_of_another_model_warns_once(tiny):
    v = V.with_metadata(model={"name": "another", "fingerprint": "0" * 16, "d_model": 32, "n_layers": 3})
    with pytest.warns(sf.SteerWarning, match="another") as caught:
        slopes(tiny, v)
    assert len(caught) == 1


def test_a_scope_that_selects_nothing_warns(tiny):
    with pytest.warns(sf.SteerWarning, match=re.escape("The scope positions(40) selected no token")):
        found = slopes(tiny, V, scope=sf.positions(40))
    assert not found.values.any()


@pytest.mark.parametrize("mode", MODES)
def test_memory_that_runs_out_halves_the_batch(tiny, mode):
    sizes = []

    def too_large(_, args):
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("too large")

    tiny.model.embed_tokens.register_forward_pre_hook(too_large)
    found = slopes(tiny, V, targets=" x", mode=mode)
    assert sizes == [4, 2, 2] and torch.isfinite(found.values).all()
    with pytest.raises(torch.OutOfMemoryError):
        slopes(tiny, V, targets=" x", mode=mode, batch_size=4)


def outcome(mode):
    try:
        return slopes(fused(), V, mode=mode).values
    except sf.ModelError as error:
        return type(error).__name__


def passes(**options):
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    slopes(model, V, **options)
    return len(seen)


def values(**options):
    return sf.sensitivity(build("llama"), words(template=True), V, PROMPTS, PAIRS, **QUIET, **options).values


OPTIONS = {
    "sites": (values, lambda: values(sites=[1])),
    "scope": (values, lambda: values(scope=sf.last_prompt_token)),
    "chat": (values, lambda: values(chat=False)),
    "mode": (lambda: outcome("reverse"), lambda: outcome("forward")),
    "batch_size": (passes, lambda: passes(batch_size=1)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_pitfall_26_an_option_changes_the_result(option):
    assert_changes(*OPTIONS[option])


def test_pitfall_26_no_option_is_left_out():
    assert optional(sf.sensitivity) - set(OPTIONS) == {"progress"}


def test_pitfall_26_progress_shows_a_bar(tiny, capsys):
    sf.sensitivity(tiny, words(), V, PROMPTS, " x")
    assert "Differentiating" in capsys.readouterr().err
    slopes(tiny, V)
    assert not capsys.readouterr().err


@pytest.mark.docs
def test_the_code_of_the_guide_runs(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "sensitivity.md").read_text(), re.DOTALL)
    exec(compile("\n".join(blocks), "sensitivity.md", "exec"), {"__name__": "guide"})
    out = capsys.readouterr().out
    assert blocks and "<- strongest" in out and "resid_post[29]" in out


@pytest.mark.heavy
def test_on_the_real_model(demo):
    """Both ways agree with each other and with finite differences on the model as it is loaded."""
    model, tokenizer = demo
    texts = sf.datasets.load("sentiment").subset(range(4))
    v = sf.mean_difference(model, tokenizer, texts.positive, texts.negative, [5, 14, 25], **QUIET)
    given = (model, tokenizer, v, ["I think this day is", "The film was"], (" great", " terrible"))
    found, forward = (sf.sensitivity(*given, chat=False, mode=mode, **QUIET) for mode in MODES)
    torch.testing.assert_close(found.values, forward.values, rtol=1e-3, atol=1e-4)
    good, bad = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in given[4])
    for i, prompt in enumerate(given[3]):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for site in v.sites:
            odds = []
            for alpha in (0.05, -0.05):
                with torch.no_grad(), sf.steer(model, v.select(site), alpha):
                    p = model(ids).logits[0, -1].double()
                odds.append((p[good[0]] - p[bad[0]]).item())
            assert found[site][i].item() == pytest.approx((odds[0] - odds[1]) / 0.1, rel=2e-2, abs=2e-2)
