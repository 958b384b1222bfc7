"""The annotations of the hot path hold: steered forwards in a process that checks every one of them.

A checked call costs about 50 us, so outside this test the hot path is not checked. jaxtyping's import hook
must come before the first import of steerfn, hence the processes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HOOK = """
import sys, warnings
import jaxtyping
hook = jaxtyping.install_import_hook("steerfn", "beartype.beartype")
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import torch
import steerfn as sf
from steerfn.operators._add import Shift
from families import build
from steering import everywhere_in, sites_of, token_ids, vector_at
"""

CHECKED = """
site = sf.resid_post[0]
h = torch.zeros(1, 2, 4)
shift = Shift(delta=torch.ones(4), site=site)
assert shift(h, sf.Info.of(h)).shape == h.shape
for wrong in (torch.zeros(2, 4), torch.zeros(1, 2, 4, dtype=torch.int64)):
    try:
        shift(wrong, sf.Info.of(h))
    except jaxtyping.TypeCheckError as error:
        assert "hidden" in str(error)
    else:
        raise SystemExit("a wrong shape went unnoticed: the hook checks nothing")
"""

OPERATORS = """
model = build("llama")
v, w = vector_at(model, sf.resid_post[1]), vector_at(model, sf.resid_post[1], seed=1)
before = vector_at(model, sf.resid_post[0], seed=2)
ids, mask = token_ids(), torch.ones(2, 6, dtype=torch.long)
mask[0, :2] = 0
f = sf.functional(model)
operators = [
    sf.identity,
    sf.add(v, 2.0),
    sf.add(v, torch.tensor([1.0, -1.0])),
    sf.add(everywhere_in(model)),
    sf.ablate(v),
    sf.project(v),
    sf.clamp(v, 1.0),
    sf.clamp(v, min=-1.0, max=torch.tensor([0.5, 1.0])),
    sf.rotate(v, 0.3),
    sf.rotate(v, 0.3, plane=w),
    sf.renorm(sf.add(v)),
    sf.chain(sf.ablate(v), sf.add(w)),
    sf.at(sf.prompt & ~sf.last_prompt_token, sf.add(v)),
    sf.at(sf.generated | sf.positions(0, slice(1, 3)), sf.add(v)),
    sf.when(sf.projection_above(v, 0.0) | ~sf.cosine_above(w, 0.1), sf.add(v)),
    sf.when(sf.probe(before, 0.2), sf.add(v)),
    sf.when(True, sf.add(v)),
    sf.rows([sf.add(v), None]),
    sf.rows([sf.clamp(v, 1.0), sf.at(sf.generated, sf.add(w))]),
    sf.scheduled(sf.add(v), [1.0, 0.5]),
    sf.scheduled(sf.add(v), lambda t: 0.5**t),
]
for op in operators:
    with torch.no_grad():
        for options in ({}, {"attention_mask": mask}):
            with sf.steer(model, op):
                context = model(ids, **options).logits
            assert torch.equal(context, f(op, ids, **options).logits)
    with sf.steer(model, op):
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
with sf.steer(model, sf.rows([sf.add(v), sf.add(w)])):
    model.generate(ids, max_new_tokens=3, num_beams=2)
with sf.steer(model, v, scope=sf.generated, prompt_length=torch.tensor([4, 5])):
    out, acts = sf.capture(model, sites_of(model))(ids, attention_mask=mask)
f(sf.add(v), ids, params=dict(model.named_parameters()))
"""

FAMILIES = """
for family in ("gpt2", "gemma2", "bloom", "falcon", "mixtral", "granite", "mamba"):
    model = build(family)
    print(sf.layout(model))
    with sf.steer(model, sf.chain(sf.add(everywhere_in(model)), sf.ablate(vector_at(model, sf.resid_post[1])))):
        sf.capture(model, sites_of(model))(token_ids())
        model.generate(token_ids(), max_new_tokens=2, do_sample=False)
half = build("llama").to(torch.bfloat16)
with sf.steer(half, vector_at(half, sf.resid_post[1])):
    half(token_ids())
"""

TRANSFORMS = """
model = build("llama")
model.set_attn_implementation("eager")
f, v, ids = sf.functional(model), vector_at(model, sf.resid_post[1]), token_ids()
loss = lambda u, a: f(sf.add(u, a), ids, use_cache=False).logits.square().mean()
gradient = torch.func.grad(loss)(v, torch.tensor(1.0))
assert isinstance(gradient, sf.SteeringVector)
torch.func.vmap(lambda a: loss(v, a))(torch.tensor([1.0, 2.0]))
torch.func.jvp(lambda a: loss(v, a), (torch.tensor(1.0),), (torch.tensor(1.0),))
stacked = torch.utils._pytree.tree_map(lambda *d: torch.stack(d), v, 2 * v)
torch.func.vmap(lambda u: loss(u, 1.0))(stacked)
"""

VALUES = """
import os, tempfile
model = build("llama")
v = sf.SteeringVector({sf.resid_post[1]: torch.ones(32), sf.head_out[1, 2]: torch.ones(8)}, {"method": "by hand"})
assert (2 * v - v / 2).unit().cosine(v) > 0.5 and (-v).magnitude and repr(v)
assert v.select(sf.resid_post[:]).layers == (1,)
assert v.to(torch.bfloat16).allclose(v) and v.identical(v) and v.with_metadata(a=1).metadata["a"] == 1
with tempfile.TemporaryDirectory() as folder:
    for name in ("v.safetensors", "v.json"):
        sf.save(v, os.path.join(folder, name))
        assert sf.load(os.path.join(folder, name)).allclose(v)
"""


@pytest.mark.parametrize(
    "script",
    [CHECKED, OPERATORS, FAMILIES, TRANSFORMS, VALUES],
    ids=["the hook checks", "operators", "families", "transforms", "values"],
)
@pytest.mark.heavy
def test_with_every_annotation_checked(script):
    code = HOOK.format(tests=str(Path(__file__).parent)) + script + "\nprint('done')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]
