"""`torch.func` through steered models: vmap is the loop, grad and jvp are finite differences.

Attention is "eager": fused CPU attention has no forward-mode rule. Precise where a family computes all in
float64; families that go through float32 inside (norms, rotary tables) get finite differences of that precision.
"""

import pytest
import torch
from families import build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import sites_of, token_ids, vector_at

import steerfn as sf

FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi", "qwen3", "olmo2", "cohere"]
families = pytest.mark.parametrize("family", FAMILIES)
# torch 2.13 does this when it loads its rules for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
IDS = token_ids()  # made once: vmap refuses random numbers inside, even seeded ones
vmap, grad, jvp = torch.func.vmap, torch.func.grad, torch.func.jvp


def eager(family, dtype=torch.float32):
    model = build(family)
    model.set_attn_implementation("eager")
    return model.to(dtype)


def logits(f, op, **options):
    return f(op, IDS, use_cache=False, **options).logits


def stacked(vectors):
    """Vectors of one structure as one whose leaves have a leading axis, as vmap wants them."""
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *vectors)


def operators(v, w):
    """Operators of every kind, as functions of a strength."""
    return {
        "add": lambda a: sf.add(v, a),
        "ablate and add": lambda a: sf.chain(sf.ablate(w), sf.add(v, a)),
        "clamp": lambda a: sf.clamp(v, a),
        "rotate": lambda a: sf.rotate(v, 0.2 * a),
        "rotate in a plane": lambda a: sf.rotate(v, 0.2 * a, plane=w),
        "renorm": lambda a: sf.renorm(sf.add(v, a)),
        "generated": lambda a: sf.at(sf.generated, sf.add(v, a)),
        "positions": lambda a: sf.at(sf.positions(0, -2), sf.add(v, a)),
        "when": lambda a: sf.when(sf.projection_above(w, 0.0), sf.add(v, a)),
        "rows": lambda a: sf.rows([sf.add(v, a), None]),
        "rows of several kinds": lambda a: sf.rows([sf.clamp(v, a), sf.add(w, a)]),
        "scheduled": lambda a: sf.scheduled(sf.add(v, a), [1.0, 0.5]),
    }


KINDS = list(operators(None, None))


@families
def test_vmap_over_alpha_is_the_loop(family):
    model = eager(family)
    f, v = sf.functional(model), vector_at(model, [sf.resid_post[0], sf.attn_out[1]])
    alphas = torch.tensor([-1.5, 0.0, 0.5, 2.0])
    with torch.no_grad(), unchanged(model):
        together = vmap(lambda a: logits(f, sf.add(v, a)))(alphas)
        for i, alpha in enumerate(alphas):
            torch.testing.assert_close(together[i], logits(f, sf.add(v, alpha)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_34_vmap_over_the_strength_of_every_operator(kind):
    model = eager("llama")
    f, v, w = sf.functional(model), vector_at(model, sf.resid_post[1]), vector_at(model, sf.resid_post[1], seed=1)
    make, strengths = operators(v, w)[kind], torch.tensor([-1.0, 0.3, 2.0])
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    with torch.no_grad():
        together = vmap(lambda a: logits(f, make(a), attention_mask=mask))(strengths)
        for i, a in enumerate(strengths):
            one = logits(f, make(a), attention_mask=mask)
            torch.testing.assert_close(together[i], one, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(together[0], together[2], atol=1e-3)


@families
def test_pitfall_34_vmap_over_stacked_vectors_is_the_loop(family):
    model = eager(family)
    f, sites = sf.functional(model), [sf.resid_post[0], sf.mlp_out[2]]
    vectors = [vector_at(model, sites, seed=i) for i in range(3)]
    with torch.no_grad():
        together = vmap(lambda u: logits(f, sf.add(u, 1.5)))(stacked(vectors))
        for i, v in enumerate(vectors):
            torch.testing.assert_close(together[i], logits(f, sf.add(v, 1.5)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_34_vmap_over_stacked_operators_is_the_loop(kind):
    model = eager("llama")
    f, site = sf.functional(model), sf.resid_post[1]
    w = vector_at(model, site, seed=50)
    ops = [operators(vector_at(model, site, seed=i), w)[kind](0.5 + i) for i in range(3)]
    with torch.no_grad():
        together = vmap(lambda op: logits(f, op))(stacked(ops))
        for i, op in enumerate(ops):
            torch.testing.assert_close(together[i], logits(f, op), rtol=1e-3, atol=1e-4)


def test_vmap_over_vectors_and_alphas_at_once():
    model = eager("llama", torch.float64)
    f = sf.functional(model)
    vectors = [vector_at(model, sf.resid_post[1], seed=i) for i in range(2)]
    alphas = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        table = vmap(lambda u: vmap(lambda a: logits(f, sf.add(u, a)))(alphas))(stacked(vectors))
        for i, v in enumerate(vectors):
            for j, a in enumerate(alphas):
                torch.testing.assert_close(table[i, j], logits(f, sf.add(v, a)), rtol=1e-4, atol=1e-5)


def test_the_trunk_below_the_site_stays_unbatched_under_vmap():
    model = eager("llama")
    f, v, seen = sf.functional(model), vector_at(model, sf.resid_post[1]), []
    for block in model.model.layers:
        block.mlp.register_forward_hook(
            lambda module, args, out: seen.append(torch._C._functorch.is_batchedtensor(out))
        )
    with torch.no_grad():
        vmap(lambda a: logits(f, sf.add(v, a)))(torch.tensor([1.0, 2.0]))
    assert seen == [False, False, True]


def directional(loss, at, along, step):
    """A central difference of `loss` at a vector along another."""
    with torch.no_grad():
        return (loss(at + step * along) - loss(at - step * along)) / (2 * step)


@families
def test_grad_with_respect_to_a_vector_is_a_finite_difference(family):
    model = eager(family, torch.float64)
    f, sites = sf.functional(model), [sf.resid_post[0], sf.attn_out[1], sf.resid_pre[2]]
    v, w = (vector_at(model, sites, seed=i).to(torch.float64) for i in (0, 9))

    def loss(u):
        return logits(f, sf.add(u, 0.7)).log_softmax(-1)[..., 7].sum()

    with unchanged(model):
        gradient = grad(loss)(v)
    assert isinstance(gradient, sf.SteeringVector)
    assert gradient.sites == v.sites and gradient.dtype == torch.float64
    along = sum((gradient[site] * w[site]).sum() for site in sites)
    torch.testing.assert_close(along, directional(loss, v, w, 1e-3), rtol=2e-3, atol=2e-3)
    step = v - 1e-4 * gradient  # an algebra of gradients: one step of descent
    assert loss(step) < loss(v)


@families
def test_jvp_and_grad_in_alpha_are_finite_differences(family):
    model = eager(family, torch.float64)
    f, v = sf.functional(model), vector_at(model, sf.resid_post[1]).to(torch.float64)
    alpha, one = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)

    def of(a):
        return logits(f, sf.add(v, a))

    with unchanged(model):
        value, tangent = jvp(of, (alpha,), (one,))
        slope = grad(lambda a: of(a).square().sum())(alpha)
    with torch.no_grad():
        torch.testing.assert_close(value, of(alpha), rtol=1e-5, atol=1e-6)
        difference = (of(alpha + 1e-3) - of(alpha - 1e-3)) / 2e-3
    torch.testing.assert_close(tangent, difference, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(slope, (2 * value * tangent).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_grad_and_jvp_through_every_operator(kind):
    """GPT-2 computes everything in the dtype of its weights, so the differences are precise."""
    model = eager("gpt2", torch.float64)
    f, site = sf.functional(model), sf.resid_post[1]
    v, w = (vector_at(model, site, seed=i).to(torch.float64) for i in (0, 1))
    along = vector_at(model, site, seed=2).to(torch.float64)
    alpha = torch.tensor(0.6, dtype=torch.float64)

    def loss(u, a):
        return logits(f, operators(u, w)[kind](a)).log_softmax(-1)[..., 7].sum()

    by_vector, by_alpha = grad(loss, argnums=(0, 1))(v, alpha)
    expected = directional(lambda u: loss(u, alpha), v, along, 1e-6)
    torch.testing.assert_close((by_vector[site] * along[site]).sum(), expected, rtol=1e-5, atol=1e-7)
    expected = directional(lambda a: loss(v, a), alpha, torch.ones_like(alpha), 1e-6)
    torch.testing.assert_close(by_alpha, expected, rtol=1e-5, atol=1e-7)
    assert by_alpha != 0
    _, tangent = jvp(lambda a: loss(v, a), (alpha,), (torch.ones_like(alpha),))
    torch.testing.assert_close(tangent, by_alpha)
    _, tangent = jvp(lambda u: loss(u, alpha), (v,), (along,))
    torch.testing.assert_close(tangent, (by_vector[site] * along[site]).sum())


@pytest.mark.parametrize("make", [sf.ablate, sf.project, lambda u: sf.clamp(u, 1.0), lambda u: sf.rotate(u, 0.3)])
def test_pitfall_33_gradients_at_the_zero_vector_are_finite(make):
    model = eager("gpt2", torch.float64)
    f, v = sf.functional(model), vector_at(model, sf.resid_post[1])
    for zero in (0 * v, 0 * v.to(torch.float64)):
        found = grad(lambda u: logits(f, make(u)).sum())(zero)
        assert torch.isfinite(found[sf.resid_post[1]]).all()
    assert grad(lambda u: logits(f, sf.add(u)).square().sum())(0 * v)[1].abs().max() > 0


def test_vmap_of_grad_is_the_loop():
    model = eager("llama", torch.float64)
    f = sf.functional(model)
    vectors = [vector_at(model, [sf.resid_post[1], sf.attn_out[2]], seed=i).to(torch.float64) for i in range(3)]

    def loss(u):
        return logits(f, sf.add(u)).log_softmax(-1)[..., 7].sum()

    together = vmap(grad(loss))(stacked(vectors))
    assert isinstance(together, sf.SteeringVector)
    for i, v in enumerate(vectors):
        alone = grad(loss)(v)
        for mine, theirs in zip(together.directions, alone.directions, strict=True):
            torch.testing.assert_close(mine[i], theirs, rtol=1e-4, atol=1e-6)


def test_second_derivatives():
    model = eager("gpt2", torch.float64)
    f, v = sf.functional(model), vector_at(model, sf.resid_post[1]).to(torch.float64)
    alpha = torch.tensor(0.4, dtype=torch.float64)

    def slope(a):
        return grad(lambda b: logits(f, sf.add(v, b)).log_softmax(-1)[..., 7].sum())(a)

    expected = directional(slope, alpha, torch.ones_like(alpha), 1e-5)
    torch.testing.assert_close(grad(slope)(alpha), expected, rtol=1e-4, atol=1e-6)


def test_pitfall_32_no_grad_outside_does_not_silence_grad():
    """`torch.func.grad` differentiates what runs inside it, whatever the caller has turned off around it."""
    model = eager("gpt2")
    f, v = sf.functional(model), vector_at(model, sf.resid_post[1])

    def loss(u):
        return logits(f, sf.add(u)).square().mean()

    free = grad(loss)(v)
    with torch.no_grad():
        inside = grad(loss)(v)
    assert free[1].abs().max() > 0
    assert inside.allclose(free)


def test_pitfall_32_gradients_through_captured_values():
    """A loss on an activation, with respect to a direction at an earlier block."""
    model = eager("gpt2", torch.float64)
    early, late = sf.resid_post[0], sf.resid_post[2]
    v, w = (vector_at(model, early, seed=i).to(torch.float64) for i in (0, 1))

    def loss(u):
        with sf.steer(model, u):
            return sf.capture(model, late)(IDS, use_cache=False)[1][late].square().mean()

    with unchanged(model):
        gradient = grad(loss)(v)
        torch.testing.assert_close(gradient[early] @ w[early], directional(loss, v, w, 1e-5), rtol=1e-5, atol=1e-8)
        leaf = v[early].requires_grad_()
        loss(sf.SteeringVector({early: leaf})).backward()
    torch.testing.assert_close(leaf.grad, gradient[early])


def test_vmap_of_the_pure_view_inside_a_context_is_the_same():
    model = eager("llama")
    f, v, w = sf.functional(model), vector_at(model, sf.resid_post[1]), vector_at(model, sf.resid_post[0], seed=1)
    with torch.no_grad():
        plain = vmap(lambda a: logits(f, sf.add(v, a)))(torch.ones(2))
        with sf.steer(model, w):
            assert_same_bits(vmap(lambda a: logits(f, sf.add(v, a)))(torch.ones(2)), plain)


def adding(delta):
    """A forward hook that adds to the output of a block, bare tensor or tuple."""
    return lambda module, args, out: (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta


def train(forward, leaf, steps=4):
    """Losses of a few steps of gradient descent on a direction."""
    optimizer, losses = torch.optim.SGD([leaf], lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -forward().log_softmax(-1)[..., 7].mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("site", [sf.resid_post[1], sf.attn_out[0], sf.resid_mid[2], sf.mlp_out[1], sf.head_out[1, 2]])
def test_training_inside_one_open_context(site):
    """An optimizer moves the leaf; the next forward pass of the same context takes the new value."""
    model = build("llama")
    model.requires_grad_(False)
    start = vector_at(model, site)[site]
    by_context, by_hand = start.clone().requires_grad_(), start.clone().requires_grad_()

    with unchanged(model):
        with sf.steer(model, sf.add(given(site, by_context))):
            losses = train(lambda: model(IDS).logits, by_context)
        # the oracle: a context of its own for every step
        f = sf.functional(model)
        expected = train(lambda: f(sf.add(given(site, by_hand)), IDS).logits, by_hand)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(by_context, by_hand)
    assert not torch.allclose(by_context.detach(), start)


def given(site, leaf):
    """A vector that holds a tensor itself, not a copy, as a function of a leaf gives it."""
    v = sf.SteeringVector({site: torch.zeros(leaf.shape)})
    return torch.utils._pytree.tree_map(lambda _: leaf, v)


def test_training_the_model_under_a_fixed_vector(tiny):
    """The other way round: parameters are trained while a vector steers."""
    reference = build("llama")
    v = vector_at(tiny, sf.resid_post[1])
    reference.model.layers[1].register_forward_hook(adding(v[1]))
    for model in (tiny, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with sf.steer(model, v, 1.0 if model is tiny else 0.0):
            for _ in range(2):
                optimizer.zero_grad()
                model(IDS, labels=IDS).loss.backward()
                optimizer.step()
    for (name, mine), (_, theirs) in zip(tiny.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    assert not torch.allclose(tiny.lm_head.weight, build("llama").lm_head.weight)


@families
def test_inference_mode(family):
    model = eager(family)
    v = vector_at(model, sites_of(model, "resid_post", "attn_out"))
    with torch.no_grad():
        expected = logits(sf.functional(model), sf.add(v, 2.0))
        plain = model(IDS, use_cache=False).logits
    with unchanged(model):
        with torch.inference_mode(), sf.steer(model, v, 2.0):
            assert_same_bits(model(IDS, use_cache=False).logits.clone(), expected)
        with sf.steer(model, v, 2.0), torch.inference_mode():  # opened outside, used inside
            assert_same_bits(model(IDS, use_cache=False).logits.clone(), expected)
        with torch.inference_mode():
            assert_same_bits(logits(sf.functional(model), sf.add(v, 2.0)).clone(), expected)
            assert_same_bits(model(IDS, use_cache=False).logits.clone(), plain)
            made = vector_at(model, sf.resid_post[1])
    with sf.steer(model, made):  # a vector made under inference mode, used with gradients on
        out = model(IDS, use_cache=False).logits
    out.sum().backward()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_autocast(family):
    model = eager(family)
    site = sf.resid_post[1]
    v = vector_at(model, site)
    path = sf.layout(model).blocks[1].path
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        plain = model(IDS, use_cache=False).logits
        with sf.steer(model, v, 2.0):
            context = model(IDS, use_cache=False).logits
        pure = logits(sf.functional(model), sf.add(v, 2.0))
        handle = model.get_submodule(path).register_forward_hook(adding(2 * v[site]))
        by_hook = model(IDS, use_cache=False).logits
        handle.remove()
        out, acts = sf.capture(model, [site, sf.attn_out[1]])(IDS, use_cache=False)
    assert context.dtype == plain.dtype
    for found in (context, pure):
        assert_same_bits(found, by_hook)
    assert not same_bits(context, plain)
    assert_same_bits(out.logits, plain)
    assert acts[site].dtype == torch.float32


def test_autocast_opened_inside_and_outside(tiny):
    """Sublayers give bf16 under autocast while the stream is float32: the addend keeps its own dtype."""
    v = vector_at(tiny, [sf.attn_out[1], sf.mlp_out[0], sf.resid_mid[2], sf.head_out[0, 1]][:3])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16), sf.steer(tiny, v):
            inside = tiny(IDS).logits
        with sf.steer(tiny, v), torch.autocast("cpu", torch.bfloat16):
            outside = tiny(IDS).logits
            acts = sf.capture(tiny, sf.attn_out[1])(IDS)[1]
        with torch.autocast("cpu", torch.bfloat16):
            bare = sf.capture(tiny, sf.attn_out[1])(IDS)[1]
    assert_same_bits(inside, outside)
    assert acts[sf.attn_out[1]].dtype == bare[sf.attn_out[1]].dtype == torch.bfloat16
