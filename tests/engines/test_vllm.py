"""The plugin in a real vLLM on a CPU: what every request gets is what live steering of it alone gives in transformers.

pytest -n 0 -m engine tests/engines/test_vllm.py

The engine's environment holds a stock vLLM. The plugin is installed beside it into a folder, from the wheel, and found
by its entry point. One process with the plugin and one without run all engines (`vllm_run.py`); the tests look at what
came out. Log-probabilities decide: a token is right if it is the likeliest, up to rounding, after the tokens before it
in transformers, steered live, which is what greedy decoding means.
"""

import concurrent.futures
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import requests
import torch
from environments import beside, python_of
from peft import LoraConfig, PeftModel, get_peft_model
from steering import vector
from transformers import AutoModelForCausalLM
from words import WORDS, words

import steerfn as sf
from steerfn.engines.vllm._steering_field import HOLDERS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT asks for it
]
TINY = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 32, "query_pre_attn_scalar": 32, "sliding_window_pattern": 2},
    "glm4": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "phi3": {"original_max_position_embeddings": 256, "sliding_window": None},
    "qwen3_moe": {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
}
WIDTH, BLOCKS = 128, 4
PARALLEL = ("llama", "gemma2")
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
TEXTS = (
    "The film was",
    "Our dinner turned out",
    "My week has been",
    "The hotel room looked",
    "This book is",
    "He said",
)
LATE = "generated"


def request(prompt, steer=None, max_tokens=8, **more):
    return {"prompt": list(prompt), "steer": steer, "max_tokens": max_tokens, **more}


def configurations():
    """32 ways to steer: vectors at one and at many blocks, strengths, scopes, layers, ablations, several at once."""
    found = []
    for alpha in (2.0, -2.0):
        for scope in ("everywhere", LATE, "prompt"):
            found += [{"vector": name, "alpha": alpha, "scope": scope} for name in ("one", "two", "many")]
    found += [{"vector": name, "operation": "ablate"} for name in ("one", "two", "many")]
    found += [{"vector": "many", "operation": "ablate", "scope": scope} for scope in (LATE, "prompt")]
    found += [{"vector": "many", "alpha": alpha, "layers": [9, 12]} for alpha in (3.0, -3.0)]
    found += [
        [{"vector": "one", "alpha": alpha, "scope": first}, {"vector": "many", "operation": "ablate", "scope": second}]
        for alpha in (4.0, -4.0)
        for first, second in (("everywhere", LATE), (LATE, "everywhere"))
    ]
    found += [
        [{"vector": "two", "operation": "ablate"}, {"vector": "two", "alpha": 2.5}, {"vector": "one", "alpha": 1.5}],
        [{"vector": "many", "alpha": 1.0}, {"vector": "one", "alpha": -1.5, "scope": LATE}, {"vector": "two"}],
        [{"vector": "one", "operation": "ablate"}, {"vector": "other", "operation": "ablate"}, {"vector": "two"}],
    ]
    return found


SEVERAL = [
    None,
    {"vector": "tiny", "alpha": 2.0},
    {"vector": "tiny", "operation": "ablate"},
    {"vector": "tiny", "alpha": 3.0, "scope": LATE},
    [{"vector": "tiny", "operation": "ablate", "layers": [1]}, {"vector": "small", "alpha": -2.0}],
]
LONG = range(300, 400)
"""A prompt of three blocks of 32 tokens and a bit."""
ONE = {"vector": "one", "alpha": 2.0}
CHOICES = [" great", " the", " a"]
"""Each is one token."""
NINE = [{"vector": name, "operation": "ablate"} for name in 3 * ("one", "other", "many")]
HOSTILE = [
    {"steer": NINE},
    {"steer": json.dumps(NINE)},
    {"steer": [json.dumps(NINE[:5]), json.dumps(NINE[5:])]},
    {"steer": json.dumps([json.dumps(NINE[:5]), json.dumps(NINE[5:])])},
    {"steer": [NINE[:5], NINE[5:]]},
    {"steer": json.dumps(json.dumps(NINE))},
    {"steer": ["[" * 50_000]},
    {"steer": "[" * 100_001},
    {"steer": '{"vector": "one", "alpha": NaN}'},
    {"steer": '{"vector": "one", "alpha": 1e999}'},
    {"steer": '{"vector": "one", "vector": "many"}'},
    {"steer": {"vector": {"vector": "one"}}},
    {"steer": {"vector": "one", "operation": ["ablate"]}},
    {"steer": {"vector": "one", "alpha": 1e5}},
    {"steer": {"vector": "one", "alpha": 10**400}},
    {"steer": {"vector": "one", "layers": [12] * 2000}},
    {"steer": {"vector": "one", "layers": [-1000]}},
    {"steer": {"vector": "../one"}},
    {"steer": {"vector": "small"}},
    {"steer": {name: {"key": "", "parts": []} for name in ("prompt", "last", "generated")}},
    {"steer": []},
    {"steer": {}},
    {"steer": ""},
    {"steer": False},
    *({"odd": name} for name in ("recursive", "recursive mapping", "nan", "infinite", "object", "bytes", "tuple")),
]
"""Refused, each alone."""
EXTREME = [NINE[:8], 8 * [ONE], [{"vector": "one", "alpha": 1e4}], [{"vector": "many", "alpha": -1e4}, *NINE[:7]]]
"""As much as may be asked for."""
FOUR = [None, ONE, {**ONE, "scope": LATE}, {"vector": "many", "operation": "ablate"}]


def job(model, tokenizer, folder):
    """All engines: what is steered is left out where the plugin is not there."""
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    plain = [request(prompt) for prompt in prompts]
    smol = {"model": str(folder / "smol"), "enforce_eager": True, "block_size": 32}
    tiny = [[5, 9, 33, 70, 12, 44, 8], [60, 2, 2, 31, 17]]
    engines = {
        "main": {
            "llm": {**smol, "max_model_len": 512, "max_num_seqs": 64},
            "rounds": [
                *([each] for each in plain),
                [*plain, *(request(prompt, ONE) for prompt in prompts)],
                [request(prompt, each, 12) for each in configurations() for prompt in (prompts[0], prompts[3])],
                [
                    request(prompts[0], "nope"),
                    *plain,
                    request(prompts[1], {"vector": "one", "strength": 2}),
                    request(prompts[2], {"vector": "tiny"}),
                    request(prompts[1], ONE),
                    request(prompts[1], {"vector": "one", "layers": [3]}),
                    request(prompts[1], ONE, n=2),
                ],
                [*(request(prompts[0], **each) for each in HOSTILE), *plain],
                [*(request(prompts[0], each) for each in EXTREME), *plain],
                [request(prompts[1], each, choice=CHOICES) for each in FOUR],
                # From here on the prefix cache: rounds after `CACHE` use what those before left there.
                [request(LONG)],
                [request(LONG, ONE, 40)],
                [request(LONG, ONE)],
                [request(LONG, {**ONE, "alpha": 2.5})],
                [request(LONG, {**ONE, "scope": LATE}, 40)],
                [request(LONG)],
                [request(LONG, after=[CACHE + 4, 0])],
                [request(LONG, ONE, after=[CACHE + 1, 0])],
                [request(LONG, {"vector": "two", "operation": "ablate", "scope": "prompt"}, 40)],
                [request(LONG, {"vector": "two", "operation": "ablate", "scope": "prompt"})],
            ],
        },
        "scarce": {
            "llm": {
                **smol, "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 16,
                "num_gpu_blocks_override": 14,
            },
            "rounds": [
                [
                    request(range(300 + n, 340 + n), each, 36)
                    for n, each in enumerate(2 * FOUR)
                ]
            ],
        },
    }  # fmt: skip
    for name in TINY:
        engines[name] = {
            "llm": {"model": str(folder / name), "enforce_eager": True, "max_model_len": 128, "block_size": 32},
            "rounds": [[request(prompt, each) for each in SEVERAL for prompt in tiny]],
        }
    llama = {**engines["llama"]["llm"]}
    engines["lora"] = {
        "llm": {**llama, "enable_lora": True, "max_lora_rank": 8},
        "rounds": [[{**each, "lora": str(folder / "lora")} for each in engines["llama"]["rounds"][0]]],
    }
    engines["bfloat16"] = {"llm": {**llama, "dtype": "bfloat16"}, "rounds": engines["llama"]["rounds"]}
    engines["compiled"] = {
        "llm": {"model": str(folder / "llama"), "max_model_len": 128, "block_size": 32},
        "rounds": engines["llama"]["rounds"],
    }
    return engines


BESIDE, MANY, BAD, REFUSED, MOST, CHOSEN, CACHE = range(len(TEXTS), len(TEXTS) + 7)
"""Rounds of the main engine."""


def unsteered(engines):
    """The same requests with nothing to steer, for a stock vLLM; only the engines that are compared with it."""
    kept = {name: engines[name] for name in ("compiled", "main")}
    kept["main"] = {**kept["main"], "rounds": kept["main"]["rounds"][: BESIDE + 1]}
    return {
        name: {**each, "rounds": [[{**one, "steer": None} for one in requests] for requests in each["rounds"]]}
        for name, each in kept.items()
    }


def save_tiny(name, folder):
    """A tiny random model of a family, with a tokenizer of 99 words."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        intermediate_size=256, vocab_size=99, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **TINY[name],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.08 * torch.randn_like(each))
    model.save_pretrained(folder)
    words(template=True, names=[*WORDS, *(f"w{i}" for i in range(96 - len(WORDS)))]).save_pretrained(folder)


def save_lora(base, folder):
    """A random adapter of a model."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """Models, vectors, and the plugin beside a stock vLLM."""
    where = tmp_path_factory.mktemp("vllm")
    model, tokenizer = demo
    model.save_pretrained(where / "smol")
    tokenizer.save_pretrained(where / "smol")
    for name in TINY:
        save_tiny(name, where / name)
    save_lora(where / "llama", where / "lora")
    (where / "vectors").mkdir()
    vectors = {
        "one": vector(12, width=576, seed=1).with_metadata(model=sf.values.fingerprint(model)),
        "two": vector(6, 20, width=576, seed=2),
        "many": vector(*range(8, 15), width=576, seed=3, scale=0.5),
        "other": vector(12, width=576, seed=4),
        "tiny": vector(0, 1, 3, width=WIDTH, seed=5, scale=0.3),
        "small": vector(1, 2, width=WIDTH, seed=6, scale=0.3),
    }
    for name, each in vectors.items():
        sf.save(each, where / "vectors" / f"{name}.safetensors")
    beside(python_of("vllm"), where / "site")
    return where


def environment(folder, plugin):
    """Of a process of vLLM."""
    found = {**os.environ, **SETTINGS, "VLLM_CACHE_ROOT": str(folder / "cache")}
    found.pop("PYTHONPATH", None)
    return found | {"PYTHONPATH": str(folder / "site"), "STEERFN_VECTORS": str(folder / "vectors")} if plugin else found


def run(folder, name, engines, plugin, **more):
    """Run engines in a process of vLLM's own."""
    asked, given = folder / f"{name}.json", folder / f"{name}-results.json"
    asked.write_text(json.dumps(engines))
    command = [str(python_of("vllm")), str(Path(__file__).parent / "vllm_run.py"), str(asked), str(given)]
    began = time.perf_counter()
    with open(folder / f"{name}.log", "w") as log:
        whole = environment(folder, plugin) | more
        ran = subprocess.run(command, stdout=log, stderr=log, env=whole, cwd=folder, timeout=3000)
    told = (folder / f"{name}.log").read_text()
    assert ran.returncode == 0 and given.exists(), told[-6000:]
    print(
        f"\n{name}: {time.perf_counter() - began:.0f} s\n" + "\n".join(x for x in told.splitlines() if ": start " in x)
    )
    return json.loads(given.read_text())


@pytest.fixture(scope="module")
def engines(demo, folder):
    return job(*demo, folder)


@pytest.fixture(scope="module")
def stock(engines, folder):
    """Without the plugin; first, so that what it compiled lies in the cache."""
    return run(folder, "stock", unsteered(engines), plugin=False)


@pytest.fixture(scope="module")
def steered(engines, stock, folder):
    """With it."""
    del stock
    return run(folder, "steered", engines, plugin=True)


@pytest.fixture(scope="module")
def vectors(folder):
    return {path.stem: sf.load(path) for path in (folder / "vectors").iterdir()}


def operator(vectors, steer, scopes):
    """The live operator of a request."""
    ops = []
    for each in [steer] if isinstance(steer, dict) else steer or []:
        v = vectors[each["vector"]]
        v = v.select(each["layers"]) if "layers" in each else v
        op = sf.ablate(v) if each.get("operation") == "ablate" else sf.add(v, each.get("alpha", 1.0))
        ops.append(sf.at(scopes[each.get("scope", "everywhere")], op))
    return sf.chain(*ops) if ops else sf.identity


def in_one_pass(length):
    """The scopes where all is passed at once, and so all is prompt: as positions."""
    late, early = sf.positions(slice(length - 1, None)), sf.positions(slice(0, length))
    return {"everywhere": sf.everywhere, LATE: late, "prompt": early}


def check(model, vectors, steer, result, tolerance=2e-3):
    """Each token is the likeliest in transformers, and as likely as vLLM says; gives how many tokens are another's."""
    prompt, run_ = result["prompt"], sf.functional(model)
    for text in result["texts"]:
        ids = torch.tensor([prompt + text["tokens"]])
        with torch.no_grad():
            scores = (
                run_(operator(vectors, steer, in_one_pass(len(prompt))), ids, use_cache=False).logits[0].log_softmax(-1)
            )
            plain = run_(sf.identity, ids, use_cache=False).logits[0].argmax(-1)
        scores, plain = scores[len(prompt) - 1 : -1], plain[len(prompt) - 1 : -1]
        theirs = torch.tensor([float.fromhex(each) for each in text["log_probs"]])
        chosen = scores.gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(theirs, chosen, rtol=0, atol=tolerance)
        assert (scores.amax(-1) - chosen).max() <= tolerance, "a token that is not the likeliest"
    return int((plain != ids[0, len(prompt) :]).sum())


def test_64_requests_at_once_with_32_configurations_are_each_steered_as_alone(demo, engines, steered, vectors):
    requests_, results = engines["main"]["rounds"][MANY], steered["main"]["rounds"][MANY]
    assert len(requests_) == 64 and len({json.dumps(each["steer"]) for each in requests_}) == 32
    others = [
        check(demo[0], vectors, *pair) for pair in zip((each["steer"] for each in requests_), results, strict=True)
    ]
    assert sum(map(bool, others)) >= 48, "most configurations change what greedy decoding takes"
    assert len({str(each["texts"][0]["tokens"]) for each in results}) >= 32


def test_generation_with_scopes_gives_the_same_tokens(demo, engines, steered, vectors):
    """The greedy tokens of `sf.generate` itself, where scopes are the library's own."""
    own = {"everywhere": sf.everywhere, LATE: sf.generated, "prompt": sf.prompt}
    pairs = list(zip(engines["main"]["rounds"][MANY], steered["main"]["rounds"][MANY], strict=True))
    some = [(asked["steer"], result) for asked, result in pairs if isinstance(asked["steer"], dict)][::6]
    assert {steer.get("scope") for steer, _ in some} >= {LATE, "prompt", "everywhere"}
    model, tokenizer = demo
    texts = [TEXTS[0] if tokenizer(TEXTS[0]).input_ids == result["prompt"] else TEXTS[3] for _, result in some]
    ops = [operator(vectors, steer, own) for steer, _ in some]
    made = sf.generate(model, tokenizer, texts, ops, max_new_tokens=12, chat=False)
    same = [
        list(ids)[-12:] == result["texts"][0]["tokens"] for ids, (_, result) in zip(made.token_ids, some, strict=True)
    ]
    assert all(same), same


def test_unsteered_requests_are_bitwise_those_of_a_stock_vllm(engines, stock, steered):
    for number in range(BESIDE):
        assert steered["main"]["rounds"][number][0]["texts"] == stock["main"]["rounds"][number][0]["texts"]
    ours, theirs = steered["main"]["rounds"][BESIDE], stock["main"]["rounds"][BESIDE]
    half = len(TEXTS)
    assert [each["texts"] for each in ours[:half]] == [each["texts"] for each in theirs[:half]]
    assert all(a["texts"] != b["texts"] for a, b in zip(ours[half:], theirs[half:], strict=True))


def test_a_bad_request_fails_alone_and_says_why(demo, engines, steered, vectors):
    results = steered["main"]["rounds"][BAD]
    told = [each.get("error") for each in results]
    half = len(TEXTS)
    assert "There is no vector 'nope'; the folder had many, one, other, two" in told[0]
    assert "steerfn.strength is wrong" in told[half + 1]
    assert "The vector 'tiny' cannot be served: The vector has width 128" in told[half + 2]
    assert "This vector has no direction at resid_post[3]" in told[half + 4]
    assert all(each.startswith("VLLMValidationError") for each in told if each)
    alone = [steered["main"]["rounds"][number][0]["texts"][0]["tokens"] for number in range(half)]
    assert [each["texts"][0]["tokens"] for each in results[1 : half + 1]] == alone
    assert check(demo[0], vectors, ONE, results[half + 3])
    assert len(results[half + 5]["texts"]) == 2 and check(demo[0], vectors, ONE, results[half + 5])


def test_hostile_requests_are_refused_and_the_engine_answers_the_next(demo, engines, steered, vectors):
    results, alone = steered["main"]["rounds"][REFUSED], [steered["main"]["rounds"][n][0] for n in range(len(TEXTS))]
    for asked, result in zip(HOSTILE, results, strict=False):
        assert re.match("VLLMValidationError: .*[.]", result.get("error", "answered")), (asked, result)
        assert len(result["error"]) < 1000
    tokens = [each["texts"][0]["tokens"] for each in alone]
    assert [each["texts"][0]["tokens"] for each in results[len(HOSTILE) :]] == tokens
    results = steered["main"]["rounds"][MOST]
    for asked, result in list(zip(EXTREME, results, strict=False))[:2]:
        assert check(demo[0], vectors, asked, result)
    assert all(len(result["texts"][0]["tokens"]) == 8 for result in results[: len(EXTREME)])
    assert [each["texts"][0]["tokens"] for each in results[len(EXTREME) :]] == tokens


def test_structured_output_is_the_likeliest_choice(demo, engines, steered, vectors):
    model, tokenizer = demo
    ids = torch.tensor([tokenizer(each).input_ids for each in CHOICES])[:, 0]
    asked, results = engines["main"]["rounds"][CHOSEN], steered["main"]["rounds"][CHOSEN]
    chosen = [result["texts"][0]["tokens"][0] for result in results]
    for each, result, token in zip(asked, results, chosen, strict=True):
        prompt = torch.tensor([result["prompt"]])
        op = operator(vectors, each["steer"], in_one_pass(prompt.shape[1]))
        scores = sf.functional(model)(op, prompt, use_cache=False).logits[0, -1]
        assert token == ids[scores[ids].argmax()]
    assert len(set(chosen)) > 1


def test_the_prefix_cache_is_keyed_by_what_touches_the_tokens(demo, engines, steered, vectors):
    rounds = range(CACHE, len(engines["main"]["rounds"]))
    results = [steered["main"]["rounds"][number][0] for number in rounds]
    for number, result in zip(rounds, results, strict=True):
        check(demo[0], vectors, engines["main"]["rounds"][number][0]["steer"], result)
    assert [each["cached"] for each in results] == [
        0,  # nothing is there
        0,  # steered everywhere: not the unsteered prompt's blocks
        96,  # its own
        0,  # another strength
        96,  # steered from the last token on: the unsteered prompt's blocks, all three
        96,  # unsteered again
        96,  # unsteered, going on with what was steered: not the blocks that were generated
        128,  # a conversation that is steered everywhere: its prompt's blocks, and one that was generated
        0,  # ablated in the prompt
        96,  # its own
    ]
    assert results[0]["texts"][0]["tokens"] == results[5]["texts"][0]["tokens"]


def test_chunks_of_prompts_and_preempted_requests(demo, engines, steered, vectors):
    assert steered["scarce"]["preemptions"] > 0
    asked, results = engines["scarce"]["rounds"][0], steered["scarce"]["rounds"][0]
    assert min(len(each["prompt"]) for each in asked) > 2 * engines["scarce"]["llm"]["max_num_batched_tokens"]
    others = [check(demo[0], vectors, *pair) for pair in zip((each["steer"] for each in asked), results, strict=True)]
    assert not any(others[::4]) and all(others[1::4]) and any(others[2::4])


def in_transformers(folder, name):
    """The model of an engine, and how far its log-probabilities may be from the engine's."""
    path, dtype = folder / (name if name in TINY else "llama"), torch.float32
    if name == "bfloat16":  # the engine rounds what it computes too
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().eval(), 0.1
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return (
        PeftModel.from_pretrained(model, folder / name).merge_and_unload() if name == "lora" else model
    ).eval(), 2e-3


@pytest.mark.parametrize("name", [*TINY, "lora", "bfloat16", "compiled"])
def test_families_adapters_precisions_and_compiled_code(name, folder, engines, stock, steered, vectors):
    """`compiled`: with `torch.compile`, and the code that the stock vLLM compiled of this model lies in the cache."""
    model, tolerance = in_transformers(folder, name)
    asked, results = engines[name]["rounds"][0], steered[name]["rounds"][0]
    for each, result in zip(asked, results, strict=True):
        others = check(model, vectors, each["steer"], result, tolerance)
        assert not others or each["steer"] or name == "bfloat16"  # where two tokens may be equally likely
    assert all(result["texts"] != results[number % 2]["texts"] for number, result in enumerate(results) if number > 1)
    if name == "compiled":
        plain = stock[name]["rounds"][0][:2]
        assert [each["texts"][0]["tokens"] for each in results[:2]] == [each["texts"][0]["tokens"] for each in plain]
    if name in ("lora", "bfloat16"):
        plain = steered["llama"]["rounds"][0]
        assert all(a["texts"] != b["texts"] for a, b in zip(results, plain, strict=True)), "the setting had no effect"


def test_two_ranks_of_tensor_parallelism(engines, folder, vectors):
    """Each rank holds half of every block and all vectors. They wait for each other in loops: one thread for each."""
    two = {name: {**engines[name], "llm": {**engines[name]["llm"], "tensor_parallel_size": 2}} for name in PARALLEL}
    found = run(folder, "parallel", two, plugin=True, OMP_NUM_THREADS="1")
    log = (folder / "parallel.log").read_text()
    assert "Worker_TP0" in log and "Worker_TP1" in log
    for name in PARALLEL:
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        asked, results = engines[name]["rounds"][0], found[name]["rounds"][0]
        for each, result in zip(asked, results, strict=True):
            check(model, vectors, each["steer"], result)
        assert all(each["texts"] != results[number % 2]["texts"] for number, each in enumerate(results) if number > 1)


def command_line():
    """`vllm`, which asks for its version by the name of another distribution than the one for the CPU."""
    code = (
        "import importlib.metadata as m; version = m.version; "
        "m.version = lambda name: version('vllm-cpu') + '+cpu' if name == 'vllm' else version(name); "
        "from vllm.entrypoints.cli.main import main; main()"
    )
    return [str(python_of("vllm")), "-c", code]


@pytest.fixture(scope="module")
def address(folder):
    """What `vllm serve` runs: two processes that answer, before two engines in processes of their own."""
    port = 18431
    command = [
        *command_line(), "serve", str(folder / "smol"),
        "--served-model-name", "smol", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256",
        "--block-size", "32", "--host", "127.0.0.1", "--port", str(port), "--enable-scale-out",
        "--data-parallel-size", "2", "--api-server-count", "2",
    ]  # fmt: skip
    log = folder / "server.log"
    whole = environment(folder, plugin=True) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=whole, cwd=folder)
    try:
        until = time.monotonic() + 1500
        where = f"http://127.0.0.1:{port}"
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-6000:]
            try:
                if requests.get(f"{where}/health", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(1)
        yield where
    finally:
        server.terminate()
        server.wait(120)


TALK = [{"role": "user", "content": "How was your day?"}]
BODIES = {
    "/v1/completions": {"prompt": TEXTS[0], "max_tokens": 8},
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 8},
    "/v1/chat/completions/batch": {"messages": [TALK, TALK], "max_tokens": 8},
    "/v1/responses": {"input": TALK[0]["content"], "max_output_tokens": 8},
    "/v1/messages": {"messages": TALK, "max_tokens": 8},
    "/invocations": {"messages": TALK, "max_tokens": 8},
}
"""By path, a request for eight tokens."""


def ask(address, path, body, **more):
    return requests.post(f"{address}{path}", json={"model": "smol", "temperature": 0, **body, **more}, timeout=600)


def said(answer):
    """The text in an answer of any of the endpoints."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if "choices" in body:
        texts = {each["text"] if "text" in each else each["message"]["content"] for each in body["choices"]}
        return texts.pop() if len(texts) == 1 else texts
    return (body["output"][-1] if "output" in body else body)["content"][0]["text"]


def test_over_http_by_two_servers_and_two_engines(demo, address, folder, vectors):
    body = {**BODIES["/v1/completions"], "logprobs": 0, "ignore_eos": True, "return_token_ids": True}
    answer = ask(address, "/v1/completions", body, use_beam_search=True, n=2, ignore_eos=False, steering="one")
    assert answer.status_code == 400 and "Beam search cannot be steered" in answer.text, answer.text  # the very first
    prompt = demo[1](TEXTS[0]).input_ids
    both = [{"vector": "one"}, {"vector": "many", "operation": "ablate"}]
    ways = [
        (None, {}),
        (None, {"steering": None}),
        (ONE, {"vllm_xargs": {"steerfn": json.dumps(ONE)}}),
        (ONE, {"steering": ONE}),
        ({"vector": "one"}, {"vllm_xargs": {"steerfn": "one"}}),
        ({"vector": "one"}, {"steering": "one", "vllm_xargs": {"other": 1}}),
        (both, {"vllm_xargs": {"steerfn": ["one", json.dumps(both[1])]}}),
        (both, {"steering": ["one", both[1]]}),
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda way: ask(address, "/v1/completions", body, **way[1]), 4 * ways))
    for (steer, _), answer in zip(4 * ways, answers, strict=True):
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        log_probs = [float(each).hex() for each in choice["logprobs"]["token_logprobs"]]
        check(
            demo[0],
            vectors,
            steer,
            {"prompt": prompt, "texts": [{"tokens": choice["token_ids"], "log_probs": log_probs}]},
        )
    log = (folder / "server.log").read_text()
    steered_by = {line.split()[0] for line in log.splitlines() if "steerfn: request" in line and "SHA-256" in line}
    assert len(steered_by) == 2, steered_by
    ran = re.findall(
        r'vllm:request_success_total{engine="(.)".*finished_reason="length".* (\S+)',
        requests.get(f"{address}/metrics", timeout=60).text,
    )
    assert {engine for engine, count in ran if float(count) > 0} == {"0", "1"}, ran


def test_every_endpoint_that_generates_takes_steering(demo, address, vectors):
    model, tokenizer = demo
    steer, op = {"vector": "one", "alpha": 4.0}, sf.add(vectors["one"], 4.0)
    texts, ids = {}, {}
    for chat, prompt in ((False, TEXTS[0]), (True, TALK[0]["content"])):
        made = sf.generate(model, tokenizer, [prompt] * 2, [sf.identity, op], max_new_tokens=8, chat=chat)
        texts[chat], ids[chat] = list(made.texts), [list(each)[-8:] for each in made.token_ids]
        assert texts[chat][0] != texts[chat][1]
    tried = set()
    for path, body in BODIES.items():
        answers = [said(ask(address, path, body, **more)) for more in ({}, {"steering": steer})]
        assert answers == texts[path != "/v1/completions"], path
        tried.add(path)
        if f"{path}/render" in HOLDERS:
            rendered = ask(address, f"{path}/render", body, steering=steer).json()
            [rendered] = rendered if isinstance(rendered, list) else [rendered]
            answer = ask(address, "/inference/v1/generate", rendered).json()
            assert answer["choices"][0]["token_ids"] == ids[path != "/v1/completions"][1], path
            tried.add(f"{path}/render")
    body = {"token_ids": tokenizer(TEXTS[0]).input_ids, "sampling_params": {"max_tokens": 8, "temperature": 0}}
    answers = [ask(address, "/inference/v1/generate", {**body, **more}) for more in ({}, {"steering": steer})]
    assert [each.json()["choices"][0]["token_ids"] for each in answers] == ids[False]
    assert tried | {"/inference/v1/generate"} == set(HOLDERS)


def test_steering_that_is_wrong_is_a_400_on_every_endpoint(address):
    for steer, told in [
        ("nope", "There is no vector 'nope'"),
        ({"vector": "one", "alpha": "big"}, "steering.alpha is wrong"),
        ({"vector": "one", "strength": 2}, "steering.strength is wrong"),
        ({"vector": "tiny"}, "The vector 'tiny' cannot be served"),
        (NINE, "1 to 8 vectors, not 9"),
        ([json.dumps(NINE[:5]), json.dumps(NINE[5:])], "steering is a mapping such as"),
        (3, "steering is a mapping such as"),
        ({}, "steering.vector is wrong"),
    ]:
        for path, body in BODIES.items():
            for stream in (False, True):
                answer = ask(address, path, body, steering=steer, stream=stream)
                assert answer.status_code == 400 and told in answer.json()["error"]["message"], (path, answer.text)
    for path, body in BODIES.items():
        for wrong in ({"vllm_xargs": {"steerfn": "{oops"}}, {"steerfn": "one"}, {"steering": "one", "vllm_xargs": [1]},
                      {"steering": "one", "vllm_xargs": {"steerfn": "one"}}):  # fmt: skip
            answer = ask(address, path, body, **wrong)
            assert answer.status_code == 400 and "steer" in answer.text, (path, wrong, answer.text)
    assert ask(address, "/v1/completions", BODIES["/v1/completions"]).status_code == 200


def test_every_other_route_refuses_steering(folder):
    """All routes that vLLM's server can have, its developers' and those of models that hear or embed too."""
    given = folder / "routes.json"
    command = [str(python_of("vllm")), str(Path(__file__).parent / "vllm_routes.py"), str(folder / "smol"), str(given)]
    whole = environment(folder, plugin=True)
    del whole["STEERFN_VECTORS"]
    ran = subprocess.run(command, env=whole, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-6000:]
    found = json.loads(given.read_text())
    for name, routes in found.items():
        for route, answers in routes.items():
            _, path = route.split()
            for way, (status, text) in answers.items():
                refused = status == 400 and f"{path} cannot be steered; leave out" in text
                assert refused == (name == "embeds" or path not in HOLDERS), (name, route, way, status, text)
    paths = {name: {route.split()[1] for route in routes} for name, routes in found.items()}
    assert set(HOLDERS) | {"/tokenize", "/v1/realtime", "/v1/audio/transcriptions"} <= paths["generates"]
    assert {"/pooling", "/v1/embeddings", "/score", "/classify", "/v1/rerank"} <= paths["embeds"]


def test_a_batch_file(demo, folder, vectors):
    lines = [
        ({"messages": TALK}, {}),
        ({"messages": TALK, "steering": {"vector": "tiny", "alpha": 3.0}}, {}),
        ({"messages": TALK, "vllm_xargs": {"steerfn": '{"vector": "tiny", "alpha": 3.0}'}}, {}),
        ({"messages": TALK, "steering": {"vector": "tiny", "alpha": "big"}}, {}),
        ({"messages": TALK, "steering": "nope"}, {}),
        ({"input": "Hello", "steering": "tiny"}, {"url": "/v1/embeddings"}),
    ]
    asked, given = folder / "batch.jsonl", folder / "answers.jsonl"
    with open(asked, "w") as file:
        for number, (body, more) in enumerate(lines):
            body = {"model": str(folder / "llama"), "temperature": 0, "max_tokens": 8, **body}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body, **more}
            file.write(json.dumps(line) + "\n")
    command = [
        *command_line(), "run-batch", "-i", str(asked), "-o", str(given),
        "--model", str(folder / "llama"), "--dtype", "float32", "--enforce-eager", "--max-model-len", "128",
    ]  # fmt: skip
    ran = subprocess.run(
        command, env=environment(folder, plugin=True), cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-6000:]
    answers = {int(each["custom_id"]): each for each in map(json.loads, given.read_text().splitlines())}
    plain, *same = (answers[n]["response"]["body"]["choices"][0]["message"]["content"] for n in range(3))
    assert same[0] == same[1] != plain
    told = ["steering.alpha is wrong", "There is no vector 'nope'", "/v1/embeddings cannot be steered"]
    for number, each in enumerate(told, 3):
        assert answers[number]["response"]["status_code"] == 400 and each in json.dumps(answers[number]["error"])
