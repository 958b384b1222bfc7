"""Gradient checkpointing: the gradients are those of a hook by hand under the same checkpointing, or it is refused."""

import functools
import threading

import pytest
import torch
from families import build
from steering import token_ids, vector_at
from torch.utils.checkpoint import checkpoint

import steerfn as sf

KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out"]
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])


def switch_on(model, reentrant):
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers 5, 4
    enable = getattr(model, f"{name}_checkpointing_enable")
    enable(**{f"{name}_checkpointing_kwargs": {"use_reentrant": reentrant}})


def training(family="llama", reentrant=None):
    """A model in training mode, checkpointed or not; its blocks have no dropout."""
    model = build(family).train()
    if reentrant is not None:
        switch_on(model, reentrant)
    return model


def site_of(kind):
    return sf.head_out[1, 2] if kind == "head_out" else sf.Site(kind, 1)


def batch(model):
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    return {"inputs_embeds": embedded, "attention_mask": mask, "use_cache": False}


def loss_of(out):
    return out.logits[:, 2:].square().mean()


def gradients(inputs, direction, model):
    weights = model.model.layers[0].mlp.down_proj.weight
    return [inputs["inputs_embeds"].grad, direction.grad, weights.grad]


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one is not None and other is not None and other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def hooked(block, kind, direction, mask):
    """A hook by hand that adds a direction at a site of a Llama block, pads left out."""

    def shift(state):
        return torch.where(mask.bool().unsqueeze(-1), state + direction, state)

    def on_output(module, args, out):
        return (shift(out[0]), *out[1:]) if isinstance(out, tuple) else shift(out)

    def on_input(module, args, kwargs):
        return (shift(args[0]), *args[1:]), kwargs

    def on_head(module, args):
        parts = list(args[0].split(8, -1))
        parts[2] = shift(parts[2])
        return (torch.cat(parts, -1),)

    if kind == "head_out":
        return block.self_attn.o_proj.register_forward_pre_hook(on_head)
    if kind == "resid_pre":
        return block.register_forward_pre_hook(on_input, with_kwargs=True)
    at = {"mlp_out": block.mlp, "resid_post": block}.get(kind, block.self_attn)
    return at.register_forward_hook(on_output)


def by_hand(kind, reentrant=None):
    model = training(reentrant=reentrant)
    inputs = batch(model)
    direction = vector_at(model, site_of(kind))[site_of(kind)].clone().requires_grad_()
    hooked(model.model.layers[1], kind, direction, inputs["attention_mask"])
    loss_of(model(**inputs)).backward()
    return gradients(inputs, direction, model)


def backward_in_a_thread(loss):
    """As an accelerator's backward runs: in a thread that knows nothing of the caller's context."""
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


@REENTRANT
@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_40_gradients_are_those_of_a_hook(kind, reentrant):
    wanted = by_hand(kind, reentrant)
    assert_same(wanted, by_hand(kind))
    for ends in ("inside", "after", "in a thread", "functional"):
        model = training(reentrant=reentrant)
        inputs, site = batch(model), site_of(kind)
        direction = vector_at(model, site)[site].clone().requires_grad_()
        op = sf.add(sf.SteeringVector({site: direction}))
        if ends == "functional":
            loss_of(sf.functional(model)(op, **inputs)).backward()
        else:
            with sf.steer(model, op):
                loss = loss_of(model(**inputs))
                if ends == "inside":
                    loss.backward()
            if ends == "after":
                loss.backward()
            elif ends == "in a thread":
                backward_in_a_thread(loss)
        assert_same(gradients(inputs, direction, model), wanted)


def everything(model, directions):
    """Operators that ask for tokens, for states met earlier in the pass, and for the stream between sublayers."""
    v, w, u = (sf.SteeringVector({s: d}) for s, d in directions.items())
    return sf.chain(
        sf.at(sf.generated, sf.scheduled(sf.add(v), [0.5, 2.0])),
        sf.when(sf.projection_above(v, 0.0), sf.ablate(w)),
        sf.when(sf.on_prompt(sf.projection_above(v, 0.0), by="mean"), sf.add(u, 2.0)),
    )


@REENTRANT
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_pitfall_40_conditions_scopes_and_several_sites(family, reentrant):
    """Checkpointed is not checkpointed, whatever an operator asks of its pass."""
    found = []
    for switch in (None, reentrant):
        model = build(family).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if switch is not None:
            switch_on(model, switch)
        sites = [sf.attn_out[0], sf.resid_mid[1], sf.mlp_out[2]]
        directions = {
            site: vector_at(model, site, seed=i)[site].clone().requires_grad_() for i, site in enumerate(sites)
        }
        inputs = batch(model)
        with sf.steer(model, everything(model, directions), prompt_length=torch.tensor([3, 4])):
            loss = loss_of(model(**inputs))
        loss.backward()
        found.append([inputs["inputs_embeds"].grad, *(d.grad for d in directions.values())])
    assert_same(found[1], found[0])


@REENTRANT
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_with_an_adapter(reentrant):
    peft = pytest.importorskip("peft")
    found = []
    for switch in (None, reentrant):
        model = training()
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"], lora_dropout=0.0)
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, settings).train()
        if switch is not None:
            switch_on(wrapped, switch)
        sites = [sf.head_out[1, 0], sf.attn_out[2]]
        directions = {site: vector_at(model, site)[site].clone().requires_grad_() for site in sites}
        inputs = batch(wrapped)
        with sf.steer(wrapped, sf.add(sf.SteeringVector(directions))):
            loss = loss_of(wrapped(**inputs))
        loss.backward()
        lora = {n: p.grad for n, p in wrapped.named_parameters() if "lora_B" in n}
        found.append([inputs["inputs_embeds"].grad, *(d.grad for d in directions.values()), *lora.values()])
    assert_same(found[1], found[0])


@REENTRANT
def test_a_pass_stays_what_it_was(reentrant):
    """An unsteered pass is not steered by a context in which its backward runs, nor one pass by another's steering."""
    wanted = []
    model = training()
    v = vector_at(model, [sf.attn_out[1], sf.resid_mid[2]], scale=2.0)
    for alpha in (0.0, 1.0):
        inputs = batch(model)
        with sf.steer(model, v, alpha):
            loss_of(model(**inputs)).backward()
        wanted.append(inputs["inputs_embeds"].grad)
    assert not torch.allclose(*wanted)
    switch_on(model, reentrant)
    unsteered, steered = batch(model), batch(model)
    with sf.steer(model, v):
        losses = []
        # The clones are in place, but this thread is not steered.
        thread = threading.Thread(target=lambda: losses.append(loss_of(model(**unsteered))))
        thread.start()
        thread.join()
        losses.append(loss_of(model(**steered)))
        with sf.steer(model, v, 5.0):
            for loss in losses:
                loss.backward()
    assert_same([unsteered["inputs_embeds"].grad, steered["inputs_embeds"].grad], wanted)


@REENTRANT
def test_two_passes_before_either_backward(reentrant):
    model = training(reentrant=reentrant)
    found, losses = [], []
    for alpha in (1.0, -2.0):
        inputs = batch(model)
        with sf.steer(model, vector_at(model, sf.attn_out[1]), alpha):
            losses.append(loss_of(model(**inputs)))
        found.append(inputs["inputs_embeds"])
    for loss in reversed(losses):
        loss.backward()
    wanted = []
    for alpha in (1.0, -2.0):
        plain = training()
        inputs = batch(plain)
        with sf.steer(plain, vector_at(plain, sf.attn_out[1]), alpha):
            loss_of(plain(**inputs)).backward()
        wanted.append(inputs["inputs_embeds"].grad)
    assert_same([each.grad for each in found], wanted)


@REENTRANT
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, of no_grad
@pytest.mark.parametrize("where", ["block", "sublayer"])
def test_a_checkpoint_that_is_not_the_models_own_is_refused(reentrant, where):
    """What runs again in backward would not be steered as its first run was: never a wrong gradient."""
    model = training()
    block = model.model.layers[1]
    inside = block if where == "block" else block.self_attn
    # As FSDP's wrapper does: the checkpoint lies around the module, whatever its forward is.
    call = torch.nn.Module.__call__

    def wrapped(self, *args, **kwargs):
        if self is not inside:
            return call(self, *args, **kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return checkpoint(functools.partial(call, self, **kwargs), hidden, use_reentrant=reentrant)

    type(inside).__call__ = wrapped
    try:
        with sf.steer(model, vector_at(model, [sf.resid_pre[1], sf.resid_mid[1]])):
            with pytest.raises(sf.SteerError, match="checkpointed by other means"):
                model(**batch(model))
            with torch.no_grad():
                model(**batch(model))
        loss_of(model(**batch(model))).backward()
    finally:
        del type(inside).__call__


@REENTRANT
def test_a_checkpointed_function_that_steers(reentrant):
    """What is run again opens its own steering: as good as the model's own checkpointing."""
    found = []
    model = training()
    f, site = sf.functional(model), sf.attn_out[1]

    def pure(embedded, direction, mask):
        return loss_of(f(sf.add(sf.SteeringVector({site: direction})), inputs_embeds=embedded, attention_mask=mask))

    def context(embedded, direction, mask):
        with sf.steer(model, sf.SteeringVector({site: direction})):
            return loss_of(model(inputs_embeds=embedded, attention_mask=mask, use_cache=False))

    for function in (None, pure, context):
        inputs = batch(model)
        given = inputs["inputs_embeds"], vector_at(model, site)[site].clone().requires_grad_(), inputs["attention_mask"]
        loss = context(*given) if function is None else checkpoint(function, *given, use_reentrant=reentrant)
        loss.backward()
        found.append([given[0].grad, given[1].grad])
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@REENTRANT
def test_a_whole_pass_in_a_checkpoint_is_refused_inside_its_context(reentrant):
    model = training()
    inputs = batch(model)
    embedded = inputs.pop("inputs_embeds")
    with sf.steer(model, vector_at(model, sf.resid_post[1])):
        with pytest.raises(sf.SteerError, match="checkpointed by other means"):
            checkpoint(lambda e: loss_of(model(inputs_embeds=e, **inputs)), embedded, use_reentrant=reentrant)


@REENTRANT
def test_an_unsteered_pass_does_not_run_again_inside_a_context(reentrant):
    model = training()
    inputs = batch(model)
    embedded = inputs.pop("inputs_embeds")
    loss = checkpoint(lambda e: loss_of(model(inputs_embeds=e, **inputs)), embedded, use_reentrant=reentrant)
    with sf.steer(model, vector_at(model, sf.attn_out[1])), pytest.raises(sf.SteerError, match="by other means"):
        loss.backward()


@REENTRANT
def test_checkpointing_that_is_switched_on_inside_is_refused(reentrant):
    model = training()
    with sf.steer(model, vector_at(model, sf.attn_out[1])):
        switch_on(model, reentrant)
        with pytest.raises(sf.SteerError, match="before the context opens"):
            loss_of(model(**batch(model)))
    inputs = batch(model)
    with sf.steer(model, vector_at(model, sf.attn_out[1])):
        loss_of(model(**inputs)).backward()
    assert inputs["inputs_embeds"].grad is not None


def test_functional_follows_checkpointing():
    """Switched on and off after `functional` was made."""
    model = training()
    f, found = sf.functional(model), []
    for reentrant in (None, True, False):
        if reentrant is not None:
            switch_on(model, reentrant)
        inputs = batch(model)
        loss_of(f(sf.add(vector_at(model, sf.resid_mid[1])), **inputs)).backward()
        found.append(inputs["inputs_embeds"].grad)
    assert_same(found[1:], [found[0]] * 2)


def test_a_checkpoint_that_stops_early_is_no_failure():
    """With on_error="baseline" the exception by which a checkpoint stops a block is not taken for a fault."""
    wanted = by_hand("mlp_out")
    model = training(reentrant=False)
    inputs, site = batch(model), sf.mlp_out[1]
    direction = vector_at(model, site)[site].clone().requires_grad_()
    with sf.steer(model, sf.SteeringVector({site: direction}), on_error="baseline") as context:
        loss_of(model(**inputs)).backward()
    assert context.fallbacks == 0
    assert_same(gradients(inputs, direction, model), wanted)


def test_removal_is_exact_after_checkpointed_passes():
    model = training(reentrant=True)
    before = {name: (id(module), set(module.__dict__)) for name, module in model.named_modules()}
    with sf.steer(model, vector_at(model, sf.resid_mid[2])), sf.steer(model, vector_at(model, sf.head_out[1, 0])):
        loss = loss_of(model(**batch(model)))
    loss.backward()
    assert before == {name: (id(module), set(module.__dict__)) for name, module in model.named_modules()}
