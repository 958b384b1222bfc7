"""What of the vLLM plugin runs without vLLM: what requests ask for, the arithmetic, the map of tokens, the keys."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from steering import vector
from transformers import LlamaConfig

import steerfn as sf
from steerfn.engines.vllm import _patches
from steerfn.engines.vllm._requests import REGIONS, key, key_of, parse, resolve, resolved_of
from steerfn.engines.vllm._steering_field import HOLDERS, SteeringField
from steerfn.engines.vllm._tables import Tables, of_second_runner, rows_and_regions, stage
from steerfn.engines.vllm._vectors import FAMILIES, EngineShelf, obstacle
from steerfn.operators._operator import Info, Tokens

WIDTH, LAYERS = 32, 4
CONFIG = LlamaConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=99)


@pytest.fixture
def shelf(tmp_path):
    sf.save(vector(1, width=WIDTH, seed=1), tmp_path / "happy.safetensors")
    sf.save(vector(1, 2, width=WIDTH, seed=2), tmp_path / "calm.json")
    sf.save(vector(-1, width=WIDTH, seed=3), tmp_path / "last.safetensors")
    sf.save(sf.SteeringVector({sf.resid_pre[2]: torch.ones(WIDTH)}), tmp_path / "before.safetensors")
    sf.save(sf.SteeringVector({sf.resid_pre[0]: torch.ones(WIDTH)}), tmp_path / "first.safetensors")
    sf.save(vector(sf.mlp_out[2], width=WIDTH), tmp_path / "inner.safetensors")
    sf.save(vector(1, width=WIDTH + 1), tmp_path / "wide.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    return EngineShelf(str(tmp_path), CONFIG)


def asked(shelf, *values):
    return resolve(parse(list(values) if len(values) > 1 else values[0]), shelf)


def operator(shelf, each):
    v = shelf[each["vector"]].vector
    v = v if "layers" not in each else v.select(each["layers"])
    return sf.ablate(v) if each.get("operation") == "ablate" else sf.add(v, each.get("alpha", 1.0))


def by_hand(op, hidden, block):
    """An operator at the output of a block, on `[tokens, width]`, through the library's own arithmetic."""
    site = sf.resid_post[block]
    bound = op.resolve(LAYERS).bind(site)
    if bound is None:
        return hidden
    return bound(hidden[None], Info(site=site, tokens=Tokens.plain(1, len(hidden))))[0]


CHAINS = [
    [{"vector": "happy", "alpha": 2.0}],
    [{"vector": "happy", "operation": "ablate"}],
    [{"vector": "calm", "alpha": -1.5}, {"vector": "happy", "alpha": 0.5}],
    [{"vector": "happy", "alpha": 3.0}, {"vector": "happy", "operation": "ablate"}, {"vector": "calm", "alpha": 1.0}],
    [{"vector": "calm", "operation": "ablate"}, {"vector": "happy", "operation": "ablate"}],
    [
        {"vector": "happy", "operation": "ablate"},
        {"vector": "calm", "alpha": 2.0},
        {"vector": "calm", "operation": "ablate", "layers": [2]},
        {"vector": "happy", "operation": "ablate"},
    ],
    [{"vector": "last", "alpha": 1.0}, {"vector": "calm", "operation": "ablate", "layers": [1]}],
]


def test_every_chain_of_a_step_gives_what_its_operator_gives(shelf):
    """All in one step, three tokens each, between tokens that nothing steers."""
    tables = Tables(shelf.directions(), tokens=64, requests=len(CHAINS) + 1, device="cpu")
    tables.begin()
    slots = [0, 0, 0]
    for chain in CHAINS:
        regions = asked(shelf, *chain)
        slots += 3 * [tables.slot(regions["prompt"]["key"], regions["prompt"]["parts"])]
    tables.stage(np.array(slots))
    random = torch.Generator().manual_seed(0)
    for block in tables.blocks:
        hidden, residual = torch.randn(2, len(slots), WIDTH, generator=random)
        hidden[0] = -0.0  # a sign that adding zero would lose
        found = hidden.clone()
        tables.apply(found, residual, block)
        assert found[:3].numpy().tobytes() == hidden[:3].numpy().tobytes()
        for number, chain in enumerate(CHAINS):
            rows = slice(3 + 3 * number, 6 + 3 * number)
            want = by_hand(sf.chain(*(operator(shelf, each) for each in chain)), (hidden + residual)[rows], block)
            torch.testing.assert_close((found + residual)[rows], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_steered_in_single_and_rounded_once(shelf, dtype):
    tables = Tables(shelf.directions(), tokens=4, requests=2, device="cpu")
    regions = asked(shelf, {"vector": "happy", "alpha": 2.0}, {"vector": "calm", "operation": "ablate"})
    tables.begin()
    tables.stage(np.full(4, tables.slot(regions["last"]["key"], regions["last"]["parts"])))
    hidden, residual = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = hidden.clone()
    tables.apply(found, residual, 1)
    op = sf.chain(sf.add(shelf["happy"].vector, 2.0), sf.ablate(shelf["calm"].vector))
    stream = hidden.float() + residual.float()
    want = hidden.float() + by_hand(op, stream, 1) - stream
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), want, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_a_step_without_steering_is_left_alone_and_the_next_one_is_not(shelf):
    tables = Tables(shelf.directions(), tokens=8, requests=2, device="cpu")
    regions = asked(shelf, "happy")
    state = {"a": (regions, 3), "b": (None, 2)}
    hidden, residual = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0))

    def step(*requests):
        counts = np.array([2] * len(requests))
        stage(tables, requests, counts, np.zeros(len(requests)), state.__getitem__)
        found = hidden.clone()
        tables.apply(found, residual, 1)
        return (found != hidden).any(-1).tolist()

    assert step("a", "b") == [True, True, False, False]
    assert step("b", "b") == [False] * 4 and not tables.token.any()
    assert step("b", "a") == [False, False, True, True]


def test_slots_are_given_to_others_only_when_the_step_does_not_need_them(shelf):
    tables = Tables(shelf.directions(), tokens=8, requests=1, device="cpu")  # three slots
    keys = {alpha: asked(shelf, {"vector": "happy", "alpha": float(alpha)})["last"] for alpha in range(1, 8)}
    tables.begin()
    first = [tables.slot(keys[n]["key"], keys[n]["parts"]) for n in (1, 2, 3)]
    assert sorted(first) == [1, 2, 3]
    tables.begin()
    kept = tables.slot(keys[1]["key"], keys[1]["parts"])
    others = [tables.slot(keys[n]["key"], keys[n]["parts"]) for n in (4, 5)]
    assert kept == first[0] and sorted([kept, *others]) == [1, 2, 3]
    tables.stage(np.array([kept, *others]))
    hidden, residual = torch.zeros(3, WIDTH), torch.zeros(3, WIDTH)
    tables.apply(hidden, residual, 1)
    for row, alpha in zip(hidden, (1, 4, 5), strict=True):
        torch.testing.assert_close(row, alpha * shelf["happy"].vector[1])


def test_tokens_find_their_request_and_region():
    """The middle of a prompt, its end, a decoding request, and one that recomputes all after preemption."""
    counts, starts, lengths = np.array([3, 4, 1, 5]), np.array([2, 7, 30, 0]), np.array([9, 10, 20, 3])
    rows, regions = rows_and_regions(counts, starts, lengths)
    assert rows.tolist() == [0] * 3 + [1] * 4 + [2] + [3] * 5
    assert [REGIONS[n][0] for n in regions] == list("ppp" + "pplg" + "g" + "pplgg")


def test_the_second_runner_is_told_by_what_it_is_scheduled(shelf):
    """vLLM's second runner needs Triton and is not run here: this is what of it is read."""
    regions = asked(shelf, "happy")
    runner = SimpleNamespace(
        steerfn=Tables(shelf.directions(), tokens=8, requests=2, device="cpu"),
        steerfn_asked={f"gone{n}": (None, 1) for n in range(5)},
        max_num_reqs=2,
        req_states=SimpleNamespace(req_id_to_index={"a": 0, "b": 1}),
    )
    new = [
        SimpleNamespace(req_id="a", prompt_len=2, sampling_params=SimpleNamespace(extra_args=None)),
        SimpleNamespace(req_id="b", prompt_len=3, sampling_params=SimpleNamespace(extra_args={"steerfn": regions})),
    ]
    batch = SimpleNamespace(
        req_ids=["b", "a"], num_scheduled_tokens=np.array([3, 2]), num_computed_tokens_np=np.array([0, 0])
    )
    of_second_runner(runner, SimpleNamespace(scheduled_new_reqs=new), batch)
    assert runner.steerfn.token.tolist() == [1, 1, 1, 0, 0, 0, 0, 0] and set(runner.steerfn_asked) == {"a", "b"}
    batch = SimpleNamespace(
        req_ids=["a", "b"], num_scheduled_tokens=np.array([1, 1]), num_computed_tokens_np=np.array([2, 3])
    )
    of_second_runner(runner, SimpleNamespace(scheduled_new_reqs=[]), batch)
    assert runner.steerfn.token.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_scopes_are_regions(shelf):
    found = asked(
        shelf, {"vector": "happy", "scope": "prompt"}, {"vector": "calm", "scope": "generated"}, {"vector": "last"}
    )
    named = {shelf.sha256(name): name for name in ("happy", "calm", "last")}
    parts = {name: [named[part["sha256"]] for part in found[name]["parts"]] for name in REGIONS}
    assert parts == {"prompt": ["happy", "last"], "last": ["happy", "calm", "last"], "generated": ["calm", "last"]}
    assert len({found[name]["key"] for name in REGIONS}) == 3
    assert asked(shelf, {"vector": "happy", "alpha": 0})["last"] == {"key": "", "parts": []}
    assert json.loads(json.dumps(found)) == found == resolved_of(SimpleNamespace(extra_args={"steerfn": found}))


@pytest.mark.parametrize(
    "value",
    ["happy", {"vector": "happy"}, '{"vector": "happy"}', ["happy"], ['{"vector": "happy"}'], '[{"vector": "happy"}]'],
)
def test_ways_to_ask_for_one_vector(shelf, value):
    assert asked(shelf, value) == asked(shelf, {"vector": "happy", "alpha": 1.0, "operation": "add"})


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nope", "There is no vector 'nope'; the folder had before, calm, happy, last"),
        ({"vector": "wide"}, "The vector 'wide' cannot be served: The vector has width 33"),
        ({"vector": "torn"}, "The vector 'torn' cannot be served"),
        ({"vector": "inner"}, r"has a direction at mlp_out\[2\], and vLLM is steered at the outputs of blocks"),
        ({"vector": "first"}, r"has a direction at resid_pre\[0\]"),
        ({"vector": "happy", "layers": [2]}, r"'happy': This vector has no direction at resid_post\[2\]"),
        ({"vector": "happy", "alpha": "2"}, "steerfn.alpha is wrong: .* not '2'"),
        ({"vector": "happy", "alpha": float("nan")}, "steerfn.alpha is wrong"),
        ({"vector": "happy", "scope": "all"}, "steerfn.scope is wrong"),
        ({"vector": "happy", "strength": 2}, "steerfn.strength is wrong: Extra inputs are not permitted"),
        ({}, "steerfn.vector is wrong: Field required"),
        (3, "steerfn is a mapping such as"),
        ("{oops", "steerfn is not JSON"),
        ("[[1]]", "steerfn is a mapping such as"),
        ([], "A request may have 1 to 8 vectors, not 0"),
        (["happy"] * 9, "A request may have 1 to 8 vectors, not 9"),
        (json.dumps(["happy"] * 9), "A request may have 1 to 8 vectors, not 9"),
        ([json.dumps(["happy"] * 5), json.dumps(["calm"] * 4)], "steerfn is a mapping such as .*, not \\['happy'"),
        (json.dumps([json.dumps(["happy"] * 5)] * 2), "steerfn is a mapping such as"),
        ([["happy"]], "steerfn is a mapping such as"),
        (json.dumps(json.dumps({"vector": "happy"})), "There is no vector"),
        ("[" * 50_000, "steerfn is not JSON"),
        ("[" * 100_001, "a text of 100001 characters, more than 100000"),
        ('{"vector": "\\ud800"}', "steerfn.vector is wrong"),
        ('["happy", \ud800]', "steerfn is not JSON"),
        ({"vector": functools.reduce(lambda value, _: [value], range(100_000), [])}, "steerfn.vector is wrong"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(shelf, value, told):
    with pytest.raises(sf.SteerError, match=told):
        asked(shelf, *([value] if not isinstance(value, list) else [value]))


@pytest.fixture(scope="module")
def echo():
    """A server that says what it got, behind the field."""

    def check(asked):
        if "nope" in asked:
            raise sf.SteerError("There is no vector 'nope'.")

    async def body(request):
        return JSONResponse((await request.body()).decode())

    async def events(socket):
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(f"got {text}")

    app = Starlette(routes=[WebSocketRoute("/events", events), Route("/{path:path}", body, methods=["POST", "PATCH"])])
    app.add_middleware(SteeringField, holders=HOLDERS, check=check)
    with TestClient(app, root_path="/below") as client:
        yield client


def test_the_field_goes_where_the_endpoint_hands_it_to_the_engine(echo):
    body = {"prompt": "Hello", "n": 1e22, "steering": ["happy", {"vector": "calm", "alpha": 2}], "vllm_xargs": {"x": 1}}
    text = '[{"vector": "happy"}, {"vector": "calm", "alpha": 2.0}]'
    for path, holder in HOLDERS.items():
        found = json.loads(echo.post(f"/below{path}", json=body).json())
        assert "steering" not in found and found["prompt"] == "Hello" and found["n"] == 1e22
        assert found["vllm_xargs"]["x"] == 1
        assert functools.reduce(dict.__getitem__, holder, found)["steerfn"] == text


@pytest.mark.parametrize(
    "data",
    [
        '{"a":  1, "a": 2}',
        '{"steering": null}',
        '{"vllm_xargs": {"steerfn": "happy"}}',
        "[1]",
        "{oops",
        "",
        "[" * 99_999,
    ],
)
def test_bodies_without_the_field_are_passed_on_as_they_are(echo, data):
    assert echo.post("/v1/completions", content=data, headers={"content-type": "application/json"}).json() == data


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/tokenize", {"steering": "happy"}, "/tokenize cannot be steered; leave out steering, or send it to one of"),
        ("/tokenize", {"vllm_xargs": {"steerfn": "happy"}}, "leave out vllm_xargs.steerfn"),
        ("/v1/completions", {"steerfn": "happy"}, "either steering or vllm_xargs.steerfn, and not steerfn; send one"),
        ("/v1/completions", {"steering": "a", "vllm_xargs": {"steerfn": "b"}}, "not steering and vllm_xargs.steerfn"),
        ("/inference/v1/generate", {"vllm_xargs": {"steerfn": "happy"}}, "sampling_params.extra_args.steerfn, and not"),
        ("/v1/completions", {"steering": "happy", "vllm_xargs": []}, "A mapping with steerfn belongs where .* \\[\\]"),
        ("/v1/completions", {"steering": {"vector": "happy", "scope": "all"}}, "steering.scope is wrong"),
        ("/v1/completions", {"steering": "[" * 100_001}, "steering is a text of 100001 characters"),
        ("/v1/completions", {"steering": [["happy"]]}, "steering is a mapping such as"),
        ("/v1/completions", {"steering": False}, "steering is a mapping such as"),
        ("/v1/completions", {"steering": "nope", "stream": True}, "There is no vector 'nope'"),
        ("/v1/completions", {"vllm_xargs": {"steerfn": "nope"}, "stream": True}, "There is no vector 'nope'"),
    ],
)
def test_a_field_that_would_be_ignored_or_is_wrong_is_refused(echo, path, body, told):
    for encoding in ("utf8", "utf16"):
        answer = echo.request("PATCH", path, content=json.dumps(body).encode(encoding))
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "steering"
        assert re.search(told, error["message"]) and error["message"].endswith(".")


def test_events_are_refused_too(echo):
    with echo.websocket_connect("/events") as socket:
        for event in ({"steering": "happy"}, {"session": {"steering": "happy"}}):
            socket.send_json(event)
            assert "cannot be steered" in socket.receive_json()["error"]
        for text in ('{"session": 1}', "{oops"):
            socket.send_text(text)
            assert socket.receive_text() == f"got {text}"


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(sf.SteerError, match="The folder of vectors '.*none' does not exist"):
        EngineShelf(str(tmp_path / "none"), CONFIG)


def test_a_steering_that_nobody_checked_is_refused():
    with pytest.raises(sf.SteerError, match="not checked when it came in"):
        resolved_of(SimpleNamespace(extra_args={"steerfn": {"vector": "happy"}}))
    assert resolved_of(SimpleNamespace(extra_args={"other": 1})) is None is resolved_of(None)


def test_a_forged_steering_stops_at_the_door_and_not_in_a_step(shelf):
    """What is not as `resolve` makes it, to the last field; a step of what passes cannot fail."""
    tables = Tables(shelf.directions(), tokens=8, requests=2, device="cpu")
    engine = SimpleNamespace(steerfn_places=set(tables.places))
    admit = _patches._with_vectors_checked(lambda self, request: request)

    def arrives(regions):
        params = SimpleNamespace(extra_args={"steerfn": regions})
        return admit(engine, SimpleNamespace(sampling_params=params))

    nine = [{"vector": "happy", "operation": "ablate"}, {"vector": "calm", "operation": "ablate"}] * 4
    good = asked(shelf, *nine)
    assert arrives(good)
    part = good["last"]["parts"][0]
    changes = [
        {"parts": [part] * 9}, {"parts": None}, {"key": 3}, {"key": "other"}, {"more": 1}, {"parts": [None]},
        *({"parts": [part | change]} for change in (
            {"sha256": "0" * 64}, {"blocks": [0]}, {"blocks": ["1"]}, {"blocks": None}, {"alpha": float("nan")},
            {"alpha": "1"}, {"operation": "rotate"}, {"more": 1},
        )),
    ]  # fmt: skip
    for change in changes:
        region = good["last"] | change
        if "key" not in change:
            region["key"] = key(region["parts"])
        with pytest.raises(sf.SteerError, match="was not checked|have no vector with SHA-256"):
            arrives(good | {"last": region})


def keys(shelf, value, prompt, blocks=4, size=16):
    params = SimpleNamespace(extra_args=None if value is None else {"steerfn": asked(shelf, value)})
    request = SimpleNamespace(sampling_params=params, num_prompt_tokens=prompt)
    return [key_of(request, size * n, size * (n + 1)) for n in range(blocks)]


def test_keys_of_the_prefix_cache(shelf):
    happy, strong = {"vector": "happy"}, {"vector": "happy", "alpha": 2.0}
    late = {"vector": "happy", "scope": "generated"}
    early = {"vector": "happy", "scope": "prompt"}
    assert keys(shelf, None, 40) == [None] * 4
    # Everywhere: forked from the first block on, and the same whether a token was prompt or generated.
    assert None not in keys(shelf, happy, 40) and keys(shelf, happy, 40) == keys(shelf, happy, 20)
    assert not set(keys(shelf, happy, 40)) & set(keys(shelf, strong, 40))
    # Generated only: a prompt forks nothing but the block with its last token.
    assert keys(shelf, late, 40)[:2] == [None, None] and None not in keys(shelf, late, 40)[2:]
    assert keys(shelf, late, 40)[3] == keys(shelf, happy, 40)[3]  # what comes before is in the parent's key
    assert keys(shelf, late, 48)[2] != keys(shelf, late, 47)[2] != keys(shelf, late, 33)[2]
    assert keys(shelf, late, 33)[2] == keys(shelf, late, 20)[2]  # all sixteen tokens are steered in both
    # The prompt only: what is generated has no key of its own, but for the block where it begins.
    assert keys(shelf, early, 40)[3] is None and None not in keys(shelf, early, 40)[:3]
    assert keys(shelf, early, 32)[2] is None


def config(**changes):
    """As much of a `VllmConfig` as is asked."""
    values = {
        "architecture": "LlamaForCausalLM", "runner_type": "generate", "pipeline_parallel_size": 1,
        "prefill_context_parallel_size": 1, "decode_context_parallel_size": 1, "use_ubatching": False,
        "speculative_config": None, "kv_transfer_config": None, "kv_sharing_fast_prefill": False, **changes,
    }  # fmt: skip
    whole = SimpleNamespace(**values)
    return SimpleNamespace(model_config=whole, parallel_config=whole, cache_config=whole, **values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "FalconForCausalLM"}, "and this is a FalconForCausalLM"),
        ({"runner_type": "pooling"}, "a pooling model"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"use_ubatching": True}, "micro-batches"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"kv_sharing_fast_prefill": True}, "kv-sharing-fast-prefill"),
    ],
)
def test_what_is_not_known_to_be_right_is_refused(change, told):
    assert told in obstacle(config(**change))


def test_known_families_are_steered_and_a_setting_that_moved_is_told():
    assert all(obstacle(config(architecture=name)) is None for name in FAMILIES)
    moved = config()
    del moved.parallel_config.use_ubatching
    assert "keeps its settings elsewhere" in obstacle(moved)
