"""`torch.func` through a whole model: vmap = loop, grad and jvp = finite differences, in float64."""

import pytest
import torch
from families import build
from steering import token_ids, vector

import steerfn as sf

# Attention as plain arithmetic: fused CPU attention has neither a batching nor a forward-mode rule.
FAMILIES = ["llama", "mistral", "gemma2", "qwen2", "phi", "gpt2", "gpt_neox", "olmo2", "stablelm", "granite"]


# Norms and softmax of most families compute in float32 whatever the model's dtype, so a step must be large enough for
# its rounding to vanish in the difference; GPT-2 is float64 throughout and shows that the derivative is exact.
STEP, CLOSE = 1e-3, {"rtol": 1e-3, "atol": 1e-3}
EXACT_STEP, EXACT = 1e-6, {"rtol": 1e-5, "atol": 1e-7}


def precision(family):
    return (EXACT_STEP, EXACT) if family == "gpt2" else (STEP, CLOSE)


def model_of(family):
    model = build(family).double()
    model.set_attn_implementation("eager")
    return model


def double(v):
    return v.to(torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_vmap_over_alpha_is_a_loop(family):
    f, ids, v = sf.functional(model_of(family)), token_ids(), double(vector(sf.resid_post[1]))
    alphas = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    got = torch.func.vmap(lambda a: f(sf.add(v, a), ids, use_cache=False).logits)(alphas)
    want = torch.stack([f(sf.add(v, a), ids, use_cache=False).logits for a in alphas])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [sf.add, sf.ablate, sf.project, lambda v: sf.rotate(v, 0.3), lambda v: sf.clamp(v, 1.0)]
)
def test_vmap_over_operators_is_a_loop(make):
    f, ids = sf.functional(model_of("llama")), token_ids()
    ops = [make(double(vector(sf.resid_post[0], sf.attn_out[1], seed=s))) for s in range(3)]
    stacked = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *ops)
    got = torch.func.vmap(lambda op: f(op, ids, use_cache=False).logits)(stacked)
    want = torch.stack([f(op, ids, use_cache=False).logits for op in ops])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_in_the_vector_is_a_finite_difference(family):
    f, ids, v = sf.functional(model_of(family)), token_ids(), double(vector(sf.resid_post[1]))
    toward = double(vector(sf.resid_post[1], seed=1))

    def loss(u):
        return f(sf.add(u, 0.7), ids, use_cache=False).logits[:, -1].logsumexp(-1).sum()

    gradient = torch.func.grad(loss)(v)
    assert isinstance(gradient, sf.SteeringVector) and gradient.sites == v.sites
    step, close = precision(family)
    with torch.no_grad():
        slope = (loss(v + step * toward) - loss(v - step * toward)) / (2 * step)
    torch.testing.assert_close(gradient[1] @ toward[1], slope, **close)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", [0.0, 1.5])
def test_jvp_in_alpha_is_a_finite_difference(family, at):
    f, ids, v = sf.functional(model_of(family)), token_ids(), double(vector(sf.resid_post[1]))
    alpha, (step, close) = torch.tensor(at, dtype=torch.float64), precision(family)

    def logits(a):
        return f(sf.add(v, a), ids, use_cache=False).logits

    out, tangent = torch.func.jvp(logits, (alpha,), (torch.ones_like(alpha),))
    with torch.no_grad():
        slope = (logits(alpha + step) - logits(alpha - step)) / (2 * step)
        torch.testing.assert_close(out, logits(alpha), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tangent, slope, **close)


def test_pitfall_33_the_gradient_at_the_zero_vector_is_right():
    f, ids = sf.functional(model_of("gpt2")), token_ids()
    zero, toward = 0.0 * double(vector(sf.resid_post[1])), double(vector(sf.resid_post[1], seed=1))

    def loss(u):
        return f(sf.add(u), ids, use_cache=False).logits[:, -1].logsumexp(-1).sum()

    gradient = torch.func.grad(loss)(zero)
    with torch.no_grad():
        slope = (loss(1e-6 * toward) - loss(-1e-6 * toward)) / 2e-6
    torch.testing.assert_close(gradient[1] @ toward[1], slope, rtol=1e-5, atol=1e-7)


def test_pitfall_32_gradients_through_captured_values():
    model, ids, v = model_of("gpt2"), token_ids(), double(vector(sf.resid_post[0]))
    leaf = v[0].requires_grad_()
    with sf.steer(model, sf.SteeringVector({0: leaf}), 2.0):
        _, acts = sf.capture(model, 2)(ids)
    acts[sf.resid_post[2]].square().sum().backward()
    step = torch.zeros_like(leaf)
    step[3] = 1e-6

    def energy(direction):
        with torch.no_grad(), sf.steer(model, sf.SteeringVector({0: direction}), 2.0):
            return sf.capture(model, 2)(ids)[1][sf.resid_post[2]].square().sum()

    slope = (energy(v[0] + step) - energy(v[0] - step)) / 2e-6
    torch.testing.assert_close(leaf.grad[3], slope, rtol=1e-5, atol=1e-6)


def test_several_backward_passes_inside_one_context():
    model, ids = model_of("llama"), token_ids()
    leaf = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    losses = []
    with sf.steer(model, sf.SteeringVector({sf.resid_post[1]: leaf}), 1.0):
        for _ in range(2):
            loss = model(ids, use_cache=False).logits.logsumexp(-1).sum()
            losses.append(loss.item())
            loss.backward()
    assert losses[0] == losses[1] and leaf.grad.abs().sum() > 0


def test_params_under_grad_and_operator_together():
    model, ids, v = model_of("llama"), token_ids(), double(vector(sf.resid_post[1]))
    f, params = sf.functional(model), dict(model.named_parameters())

    def loss(params, u):
        return f(sf.add(u), ids, params=params, use_cache=False).logits.square().sum()

    by_params, by_vector = torch.func.grad(loss, argnums=(0, 1))(params, v)
    assert set(by_params) == set(params) and by_params["model.layers.0.mlp.up_proj.weight"].abs().sum() > 0
    assert by_vector.magnitude[sf.resid_post[1]] > 0


@pytest.mark.parametrize("how", [torch.inference_mode, torch.no_grad])
def test_without_gradients(how, tiny, prompt):
    v = vector(sf.resid_post[1])
    with how():
        want = sf.functional(tiny)(sf.add(v), prompt).logits
        with sf.steer(tiny, v):
            assert torch.equal(tiny(prompt).logits, want)


def test_autocast_keeps_the_dtype_of_the_stream(tiny, prompt):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = tiny(prompt).logits
        with sf.steer(tiny, vector(sf.resid_post[1])):
            steered = tiny(prompt).logits
        assert torch.equal(tiny(prompt).logits, plain)
    assert steered.dtype == plain.dtype and not torch.equal(steered, plain)
