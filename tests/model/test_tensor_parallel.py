"""Tensor parallelism: a model that is split over two ranks is steered as the whole model is in one process.

transformers' `tp_plan="auto"` on two gloo processes, on the CPU. Every rank makes the calls of `observe` and leaves
what came out in a folder; the oracle is what the same calls give on the unsharded model, in the test's own process.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from families import FAMILIES, build
from snapshot import Snapshot, assert_same_bits, same_bits
from steering import everywhere_in, sites_of, token_ids, vector_at
from words import words

import steerfn as sf
from steerfn.model import _forwards

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo backend"
)
RANKS = 2
FEW = ("llama", "qwen3")
# Experts, a parallel style on attention itself, fused projections, post-norms, multipliers, latent attention.
MORE = ("qwen3_moe", "gpt_oss", "phi3", "gemma3_text", "granite", "deepseek_v3", "gpt_neox", "cohere2")
MORE = tuple(name for name in MORE if name in FAMILIES)

SCRIPT = "import sys; from test_tensor_parallel import work; work(sys.argv[1], sys.argv[2:])"


def logits(model):
    with torch.no_grad():
        return model(token_ids()).logits


def changed(model, before):
    """What is not as it was on a model, but for the values of its weights."""
    return before.differences(dataclasses.replace(Snapshot.of(model), tensors={}))


def operators(model):
    """Operators of every kind of place, with a scope, a condition and rows among them."""
    at = {kind: sf.Site(kind, 1, 3 if kind == "head_out" else None) for kind in sf.layout(model).blocks[1].kinds}
    v = {kind: vector_at(model, site, seed=7, scale=3.0) for kind, site in at.items()}
    found = {f"add at {site}": sf.add(v[kind]) for kind, site in at.items()}
    found["scope"] = sf.at(sf.generated, sf.add(v["resid_post"]))
    found["rows"] = sf.rows([None, sf.chain(sf.ablate(v["resid_pre"]), sf.add(v["resid_post"], -2.0))])
    if "head_out" in at:  # decided by a head that the first rank does not hold
        found["condition"] = sf.when(sf.projection_above(v["head_out"], 0.0), sf.add(v["resid_post"], 2.0))
    return found


def observe(model):
    """What comes out of every use of a model, by name; `changed` says what the uses left behind."""
    before = dataclasses.replace(Snapshot.of(model), tensors={})
    sites, found = sites_of(model), {"plain": logits(model)}
    pure = sf.functional(model)
    for i, site in enumerate(sites):
        op = sf.chain(sf.ablate(vector_at(model, site, seed=i)), sf.add(vector_at(model, site, seed=i + 50), 2.0))
        with torch.no_grad():
            found[f"pure: {site}"] = pure(op, token_ids()).logits
        with sf.steer(model, op):
            found[f"context: {site}"] = logits(model)
    with torch.no_grad(), sf.steer(model, everywhere_in(model)):
        for site, state in sf.capture(model, sites)(token_ids())[1].items():
            found[f"capture: {site}"] = state
    mask = torch.ones_like(token_ids())
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    found["tokens: unsteered"] = model.generate(token_ids(), **options)
    for name, op in operators(model).items():
        with sf.steer(model, op):
            found[f"tokens: {name}"] = model.generate(token_ids(), **options)
    op = sf.add(vector_at(model, sf.resid_post[0], seed=9, scale=3.0))
    found["tokens: texts"] = torch.tensor(
        sf.generate(model, words(), ["a b c", "d"], [None, op], max_new_tokens=4).token_ids
    )

    texts = {"positive": ["a b c", "d e", "a b f g"], "negative": ["h i", "a b j k l"], "progress": False}
    read = [site for site in sites if site.block == 1 or site == sf.resid_post[2]]
    for site in read:
        found[f"direction: {site}"] = sf.mean_difference(model, words(), sites=site, **texts)[site]
        directions = vector_at(model, site, seed=4)[site].requires_grad_()
        with sf.steer(model, sf.SteeringVector({site: directions})):
            model(token_ids()).logits.square().mean().backward()
        found[f"gradient: {site}"] = directions.grad

    halved = {name: 0.5 * value for name, value in model.named_parameters() if "_proj" in name or "dense" in name}
    with torch.no_grad():
        found["params: halved projections"] = pure(sf.identity, token_ids(), params=halved).logits
    model.zero_grad()
    found["again"] = logits(model)
    return {**found, "changed": changed(model, before)}


def split(folder, family):
    """A model over all ranks, loaded in the spelling of this transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    if family == "llama" or not hasattr(DistributedConfig(), "tp_size"):
        return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    return AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=RANKS)).eval()


def refusal(model, params):
    """What the pure view says to whole tensors in place of split ones."""
    try:
        sf.functional(model)(sf.identity, token_ids(), params=params)
    except sf.SteerError as error:
        return str(error)
    return "nothing"


def work(folder, families):
    """What one rank does."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A file in place of torchrun's address and port.
    where = f"file://{Path(folder, 'rendezvous').absolute()}"
    dist.init_process_group("gloo", init_method=where, rank=int(os.environ["RANK"]), world_size=RANKS)
    for family in families:
        model = split(Path(folder, family), family)
        found = observe(model)
        parts = {name: p for name, p in model.named_parameters() if hasattr(p, "device_mesh")}
        found["split"] = bool(parts)
        found["refused"] = refusal(model, {name: p.full_tensor() for name, p in parts.items()})
        torch.save(found, Path(folder, f"{family}.{dist.get_rank()}.pt"))
    dist.destroy_process_group()


SETS = [pytest.param(FEW, marks=pytest.mark.heavy, id="few"), pytest.param(MORE, marks=pytest.mark.slow, id="more")]


@pytest.fixture(scope="module", params=SETS)
def ranks(request, tmp_path_factory):
    """By family: what each rank found, and what the whole model gives."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    models = {family: build(family) for family in request.param}
    for family, model in models.items():
        model.save_pretrained(folder / family)
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), *map(str, here.parents[:2])]),
        "OMP_NUM_THREADS": "1",
    }
    environment["WORLD_SIZE"] = str(RANKS)
    started = []
    try:
        for rank in range(RANKS):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"{rank}.log").open("w") as log:
                run = [sys.executable, "-c", SCRIPT, folder, *models]
                started.append(subprocess.Popen(run, env=own, stdout=log, stderr=log))
        expected = {family: observe(model) for family, model in models.items()}
        for rank, process in enumerate(started):
            assert process.wait(timeout=280) == 0, (folder / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return {
        family: ([torch.load(folder / f"{family}.{rank}.pt") for rank in range(RANKS)], expected[family])
        for family in models
    }


def each(ranks, *names):
    """Family, name, what the ranks found, and what is expected, of every result whose name starts as asked."""
    for family, (found, expected) in ranks.items():
        asked = [name for name in expected if name.split(":")[0] in names]
        assert asked and all(list(rank) == [*expected, "split", "refused"] and rank["split"] for rank in found)
        for name in asked:
            yield f"{family}, {name}", [rank[name] for rank in found], expected[name]


def test_every_site_is_steered_as_in_one_process(ranks):
    """Logits to rounding, in the context and in the pure view, which agree bit for bit; all ranks agree bit for bit."""
    for name, (first, second), expected in each(ranks, "plain", "context", "pure", "params"):
        assert_same_bits(first, second, name)
        assert (first - expected).abs().max() < 2e-4, name
    for family, (found, expected) in ranks.items():
        for name in [name for name in expected if name.startswith("context")]:
            assert (expected[name] - expected["plain"]).abs().max() > 0.05, f"{family}, {name} does nothing"
            assert_same_bits(found[0][name], found[0][name.replace("context", "pure")], f"{family}, {name}")
        assert (expected["params: halved projections"] - expected["plain"]).abs().max() > 0.05


def test_activations_directions_and_gradients_are_those_of_one_process(ranks):
    for name, (first, second), expected in each(ranks, "capture", "direction", "gradient"):
        assert_same_bits(first, second, name)
        assert expected.norm() > 0, name
        assert (first - expected).norm() <= 1e-4 * expected.norm(), name


def test_generation_gives_the_tokens_of_one_process(ranks):
    for name, (first, second), expected in each(ranks, "tokens"):
        assert torch.equal(first, second) and torch.equal(first, expected), name
    for family, (_, expected) in ranks.items():
        steered = [name for name in expected if name.startswith("tokens: add at resid_post")]
        assert steered and not any(torch.equal(expected[name], expected["tokens: unsteered"]) for name in steered), (
            family
        )


def test_whole_tensors_in_place_of_split_ones_are_refused(ranks):
    for found, _ in ranks.values():
        for rank in found:
            assert rank["refused"].startswith("params holds whole tensors where the model's are split over processes:")


def test_removal_is_exact_on_every_rank(ranks):
    for name, found, _ in each(ranks, "changed"):
        assert found == [[], []], name
    for family, (found, _) in ranks.items():
        for rank in found:
            assert_same_bits(rank["again"], rank["plain"], family)


def enclosed(module):
    """Give a module a forward as transformers' tensor parallelism does: a closure over the module."""
    inner = module.forward

    def forward(*args, **kwargs):
        assert isinstance(module, torch.nn.Module)
        return inner(*args, **kwargs)

    module.forward = forward


def test_a_forward_that_is_a_closure_over_its_module_runs_on_the_copy(tiny):
    """The pure view: what is steered inside such a module, and parameters that are passed, count."""
    site, changed_name = sf.head_out[1, 2], "model.layers.1.self_attn.o_proj.weight"
    op, params = sf.add(vector_at(tiny, site, scale=3.0)), {changed_name: 2 * tiny.get_parameter(changed_name)}
    pure = sf.functional(tiny)
    with torch.no_grad():
        steered, given = pure(op, token_ids()).logits, pure(op, token_ids(), params=params).logits
    assert not same_bits(steered, given) and not same_bits(steered, logits(tiny))
    model = build("llama")
    enclosed(model.model.layers[1].self_attn)
    enclosed(model.model.layers[1].self_attn.o_proj)
    forward, before = model.model.layers[1].self_attn.forward, Snapshot.of(model)
    pure = sf.functional(model)
    with torch.no_grad():
        assert_same_bits(pure(op, token_ids()).logits, steered)
        assert_same_bits(pure(op, token_ids(), params=params).logits, given)
    with sf.steer(model, op):
        assert_same_bits(logits(model), steered)
    assert model.model.layers[1].self_attn.forward is forward
    assert not before.differences(Snapshot.of(model))


def test_heads_that_are_split_in_an_unknown_way_are_refused():
    with pytest.raises(sf.ModelError) as caught:
        _forwards.all_heads(torch.zeros(1, 2, 16), 32, None)
    assert str(caught.value) == (
        "The attention heads here are 16 wide together where 32 was expected: they are split over devices in a way "
        "that is not known (mesh: None), so head_out cannot be steered or read; use attn_out, or load the model "
        "without splitting attention."
    )
