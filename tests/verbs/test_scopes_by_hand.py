"""Scopes against hooks written by hand: each prompt alone, no padding, no cache, none of this library's positions.

What `test_generation_scopes.py` compares with the pure view, this file compares with plain PyTorch.
"""

import contextlib

import pytest
import torch
import transformers
from families import CORE, FAMILIES, shared
from steering import token_ids, vector_at

import steerfn as sf

# What transformers 4.57 does while it imports some families.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

OLD = transformers.__version__.startswith("4.")
READS_PADDING = {"lfm2"} if OLD else set()
"""Families whose state passes through the pads: rows of one length only."""

NOT_HERE = {
    "deepseek_v4 hrm_text hy_v4 gemma3n_text": "refused",
    "xlnet": "recomputes the prompt under another mask",
    "mllama": "its block 1 runs with images only",
    "nemotron_h": "its recurrence makes rounding visible",
    "glm_moe_dsa": "attends to its best few tokens, which rounding decides in a model this small",
}
OTHERS = [name for name in FAMILIES if name not in CORE and name not in " ".join(NOT_HERE).split()]
families = pytest.mark.parametrize("family", [*CORE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])

NEW = 6

# What each scope means, for the real token `i` of a row with a prompt of `p` tokens.
MEANINGS = {
    "everywhere": (sf.everywhere, lambda i, p: True),
    "prompt": (sf.prompt, lambda i, p: i < p),
    "generated": (sf.generated, lambda i, p: i >= p - 1),
    "last prompt token": (sf.last_prompt_token, lambda i, p: i == p - 1),
    "second token": (sf.positions(1), lambda i, p: i == 1),
    "last but one": (sf.positions(-2), lambda i, p: i == p - 2),
    "from the third": (sf.positions(slice(2, None)), lambda i, p: i >= 2),
    "every second from the end of the prompt": (
        sf.positions(slice(-3, None, 2)),
        lambda i, p: i in range(max(p - 3, 0), 99, 2),
    ),
    "not prompt": (~sf.prompt, lambda i, p: i >= p),
    "prompt but its end": (sf.prompt & ~sf.last_prompt_token, lambda i, p: i < p - 1),
    "first or generated": (sf.positions(0) | sf.generated, lambda i, p: i == 0 or i >= p - 1),
    "not the second nor the eighth": (~sf.positions(1, 7), lambda i, p: i not in (1, 7)),
}
STRENGTHS = [1.0, -0.5, 0.0, 2.0]


@contextlib.contextmanager
def by_hooks(model, vector, strengths):
    """Add to the input and to the output of blocks, token by token: `strengths` is `[batch, seq]`."""
    handles = []
    for site in vector.sites:
        block = model.get_submodule(sf.layout(model).blocks[site.layer].path)
        delta = strengths[..., None] * vector[site]

        def before(module, args, kwargs, delta=delta):
            if args:
                return (args[0] + delta, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + delta}

        def after(module, args, out, delta=delta):
            return (out[0] + delta, *out[1:]) if isinstance(out, (tuple, list)) else out + delta

        if site.kind == "resid_pre":
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(block.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alone(model, vector, prompt, meanings):
    """Greedy decoding of one prompt without a cache, under each meaning `(i, p) -> strength of token i`, a row each.

    New ids `[meanings, new]` and their logits `[meanings, new, vocab]`.
    """
    ids, scores, p = prompt.expand(len(meanings), -1), [], len(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            strengths = torch.tensor([[float(meaning(i, p)) for i in range(ids.shape[1])] for meaning in meanings])
            with by_hooks(model, vector, strengths):
                scores.append(model(ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, scores[-1].argmax(-1, keepdim=True)], 1)
    return ids[:, p:], torch.stack(scores, 1)


def together(model, op, rows, **options):
    """`generate` on the left-padded batch: new ids `[rows, new]` and their logits `[rows, new, vocab]`."""
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    options = {"max_new_tokens": NEW, "do_sample": False, "attention_mask": mask} | options
    with sf.steer(model, op):
        out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[:, width:], torch.stack(out.logits, 1)


def prompts(lengths=(6, 2, 4)):
    return [token_ids(1, n, seed=20 + i)[0] for i, n in enumerate(lengths)]


def prepared(family):
    """A model, three prompts, a vector; skips where the model itself is another one under a cache."""
    model = shared(family)
    v = vector_at(model, [sf.resid_pre[1], sf.resid_post[1], sf.resid_post[2]], scale=0.7)
    if family in CORE:
        return model, prompts((6, 6, 6)) if family in READS_PADDING else prompts(), v
    for rows in (prompts(), prompts((6, 6, 6))):  # without padding where the model takes account of pads
        try:
            expected = [alone(model, v, row, [lambda i, p: 0.0]) for row in rows]
            for cached in (True, False):
                assert_same(together(model, sf.identity, rows, use_cache=cached), expected, 0, "unsteered")
            return model, rows, v
        except (AssertionError, RuntimeError) as error:  # Recurrent Gemma keeps the state of another batch
            reason = str(error)
    pytest.skip(f"{family}, unsteered, with a cache is another model than without: {reason}")


def assert_same(found, expected, case, what):
    """`found` holds each prompt's row, `expected` each prompt's cases."""
    for row, (tokens, scores) in enumerate(expected):
        near = {"rtol": 1e-4, "atol": 1e-4 * float(scores[case].abs().max())}
        torch.testing.assert_close(found[1][row], scores[case], **near, msg=lambda m, r=row: f"{what}, row {r}: {m}")
        assert torch.equal(found[0][row], tokens[case]), f"{what}, row {row}"


@families
def test_pitfall_04_scopes_are_what_hooks_by_hand_do(family):
    model, rows, v = prepared(family)
    plain = together(model, sf.identity, rows)[1]
    expected = [alone(model, v, row, [meaning for _, meaning in MEANINGS.values()]) for row in rows]
    for case, (name, (scope, _)) in enumerate(MEANINGS.items()):
        for cached in (True, False):
            found = together(model, sf.at(scope, sf.add(v)), rows, use_cache=cached)
            assert_same(found, expected, case, f"{name}, use_cache={cached}")
        assert not torch.allclose(found[1], plain, rtol=1e-3, atol=1e-3), f"{name} changed nothing"


@families
def test_schedules_rows_and_strengths_are_what_hooks_by_hand_do(family):
    model, rows, v = prepared(family)
    alphas = [2.0, 0.0, -1.0]

    def scheduled(i, p):
        return STRENGTHS[min(i - p + 1, 3)] if i >= p - 1 else 0.0

    # An operator for the batch, and what it means for each of the three rows.
    cases = [
        (sf.scheduled(sf.add(v), STRENGTHS), [scheduled] * 3),
        (sf.add(v, torch.tensor(alphas)), [lambda i, p, a=a: a for a in alphas]),
        (
            sf.rows([sf.at(sf.generated, sf.add(v)), None, sf.scheduled(sf.add(v, 0.5), STRENGTHS)]),
            [lambda i, p: i >= p - 1, lambda i, p: 0.0, lambda i, p: 0.5 * scheduled(i, p)],
        ),
    ]
    expected = [alone(model, v, row, [meanings[r] for _, meanings in cases]) for r, row in enumerate(rows)]
    for case, (op, _) in enumerate(cases):
        for cached in (True, False):
            assert_same(together(model, op, rows, use_cache=cached), expected, case, f"{op}, use_cache={cached}")


@pytest.mark.parametrize("family", [name for name in CORE if name not in READS_PADDING])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pitfall_05_padding_against_hooks_by_hand(family, side):
    """One forward pass: everything is prompt, and the row's own length counts."""
    model, rows = shared(family), prompts()
    v = vector_at(model, [sf.resid_pre[1], sf.resid_post[1]], scale=0.7)
    pad = [(6 - len(row), 0) if side == "left" else (0, 6 - len(row)) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, p) for row, p in zip(rows, pad, strict=True)])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), p) for row, p in zip(rows, pad, strict=True)])
    given = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if family == "gpt2" else {}
    cases = {name: case for name, case in MEANINGS.items() if name != "not prompt"}  # all there is
    expected = []
    for tokens in rows:
        n = len(tokens)
        strengths = torch.tensor([[float(meaning(i, n)) for i in range(n)] for _, meaning in cases.values()])
        with torch.no_grad(), by_hooks(model, v, strengths):
            expected.append(model(tokens.expand(len(cases), -1)).logits)
    for case, (name, (scope, _)) in enumerate(cases.items()):
        with torch.no_grad(), sf.steer(model, v, scope=scope):
            found = model(ids, attention_mask=mask, **given).logits
        for row, reference in enumerate(expected):
            near = {"rtol": 1e-4, "atol": 1e-4 * float(reference[case].abs().max())}
            torch.testing.assert_close(
                found[row][mask[row].bool()], reference[case], **near, msg=lambda m, n=name, r=row: f"{n}, row {r}: {m}"
            )
