"""Which model a vector is for: identity, and what a mismatch gives."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from steerfn.values._errors import ModelError, SteerWarning
from steerfn.values._fingerprint import check_match, fingerprint
from steerfn.values._site import attn_out, head_out, resid_post
from steerfn.values._vector import SteeringVector
from steerfn.values._weights_hash import weights_hash
from steerfn.values.files._save_load import load, save
from steerfn.verbs._functional import functional
from steerfn.verbs._steer import steer

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}

IDS = torch.tensor([[5, 6, 7]])

# Virtual environments beside this one, which may hold another release of transformers.
OTHERS = [p for p in sorted(Path(sys.prefix).parent.glob("*/bin/python")) if p.parents[1] != Path(sys.prefix)]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def made_from(model, sites=(resid_post[1],), width=32, weights=True) -> SteeringVector:
    about = fingerprint(model, weights=weights)
    return SteeringVector({site: torch.ones(width) for site in sites}, {"model": about})


def with_config(model, **changes):
    """The same model with another config, without building one."""
    other = copy.copy(model)
    other.config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(other.config, name, value)
    return other


class Holder:
    def __init__(self, config: object) -> None:
        self.config = config


def test_identity(llama):
    told = fingerprint(llama)
    assert set(told) == {"name", "revision", "architecture", "d_model", "n_layers", "fingerprint"}
    assert told["name"] == told["architecture"] == "LlamaForCausalLM" and told["revision"] is None
    assert (told["d_model"], told["n_layers"]) == (32, 3)
    assert len(told["fingerprint"]) == 16 and int(told["fingerprint"], 16) >= 0
    assert json.loads(json.dumps(told)) == told


def test_gpt2_names_its_sizes_otherwise():
    told = fingerprint(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=99)))
    assert (told["d_model"], told["n_layers"], told["architecture"]) == (32, 3, "GPT2LMHeadModel")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("gpt2", "gpt2"),
        ("/home/someone/secret/llama-3.1", "llama-3.1"),
        ("/home/someone/llama/", "llama"),
        ("C:\\Users\\someone\\llama", "llama"),
        ("~/models/llama", "llama"),
        ("../models/llama", "llama"),
        ("/x/hub/models--org--name-3.1/snapshots/0123abc", "org/name-3.1"),
        ("a/b/c", "c"),
        ("/", "LlamaForCausalLM"),
        ("", "LlamaForCausalLM"),
        (None, "LlamaForCausalLM"),
    ],
)
def test_name_is_never_a_path(llama, path, name):
    assert fingerprint(with_config(llama, _name_or_path=path))["name"] == name


def test_name_of_a_folder_that_looks_like_a_hub_name(llama, tmp_path, monkeypatch):
    (tmp_path / "secret" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fingerprint(with_config(llama, _name_or_path="secret/llama"))["name"] == "llama"
    monkeypatch.chdir(tmp_path / "secret" / "llama")
    assert fingerprint(with_config(llama, _name_or_path="."))["name"] == "llama"


def test_revision(llama):
    assert fingerprint(with_config(llama, _commit_hash="0123abc"))["revision"] == "0123abc"
    cached = with_config(llama, _name_or_path="/x/models--org--name/snapshots/0123abc")
    assert fingerprint(cached)["revision"] == "0123abc"


def test_the_same_model_has_the_same_fingerprint(llama, tmp_path):
    here = fingerprint(llama)["fingerprint"]
    llama.save_pretrained(tmp_path)
    same = (
        copy.deepcopy(llama).bfloat16(),
        LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float16),
        LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=4)),  # the default, written out
        with_config(llama, _name_or_path="other", use_cache=False, quantization_config={"bits": 4}, dtype="float16"),
        torch.compile(llama, backend="eager"),
        Holder(llama.config),
    )
    assert {fingerprint(model)["fingerprint"] for model in same} == {here}
    assert fingerprint(torch.compile(llama, backend="eager"))["architecture"] == "LlamaForCausalLM"


def test_text_tower_of_a_composite_config(llama):
    class Composite:
        model_type = "vision"

        def get_text_config(self, decoder=None):
            return llama.config

    told = fingerprint(Holder(Composite()))
    assert (told["d_model"], told["n_layers"]) == (32, 3)
    assert told["fingerprint"] == fingerprint(llama)["fingerprint"]


@pytest.mark.parametrize("name", [*SMALL, "num_key_value_heads", "model_type"])
def test_each_size_counts(llama, name):
    config = type("Config", (), {**SMALL, "num_key_value_heads": 4, "model_type": "llama"})
    other = type("Config", (config,), {name: "qwen2" if name == "model_type" else 64})
    assert fingerprint(Holder(config))["fingerprint"] == fingerprint(llama)["fingerprint"]
    assert fingerprint(Holder(other))["fingerprint"] != fingerprint(llama)["fingerprint"]


def test_sizes_that_raise_are_absent():
    class PerLayer:
        hidden_size = 32

        @property
        def intermediate_size(self):
            raise RuntimeError("varies across layers")

    assert fingerprint(Holder(PerLayer()))["d_model"] == 32
    assert fingerprint(Holder(PerLayer()))["n_layers"] is None


def test_no_config():
    with pytest.raises(ModelError, match="A Linear has no config .*; pass a transformers causal language model"):
        fingerprint(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("python", OTHERS, ids=lambda python: python.parents[1].name)
def test_fingerprint_across_transformers_releases(python):
    """The same configs give the same fingerprint whatever release reads them."""
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import CONFIG_MAPPING
from steerfn.values._fingerprint import fingerprint
class Holder: pass
found = {}
for kind in sys.argv[1].split():
    holder = Holder()
    holder.config = CONFIG_MAPPING[kind]()
    found[kind] = fingerprint(holder)["fingerprint"]
print(json.dumps(found))
"""
    kinds = "llama gpt2 qwen2 qwen3 gemma2 mistral mixtral phi3 gpt_neox falcon opt bloom mpt gemma3 olmo2 gpt_oss"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    there = subprocess.run([python, "-c", code, kinds], env=environment, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in there.stderr:
        pytest.skip(f"{python} lacks what steerfn needs")
    told = json.loads(there.stdout.splitlines()[-1])
    for kind in kinds.split():
        assert fingerprint(Holder(CONFIG_MAPPING[kind]()))["fingerprint"] == told[kind], kind
    assert len(set(told.values())) == len(told)


def test_reading_leaves_the_config_alone(llama):
    before = json.dumps(llama.config.to_dict(), default=str)
    fingerprint(llama)
    assert json.dumps(llama.config.to_dict(), default=str) == before


# -- matching --------------------------------------------------------------------------------------


def test_a_match_is_silent(llama):
    check_match(made_from(llama, [resid_post[-3], resid_post[2], attn_out[0]]), llama, strict=True)
    heads = SteeringVector({head_out[1, 2]: torch.ones(8)}, {"model": fingerprint(llama, weights=True)})
    check_match(heads, llama, strict=True)


@pytest.mark.parametrize("metadata", [{}, {"model": None}, {"model": "llama"}, {"model": {}}, {"model": [1]}])
def test_without_an_identity_only_shapes_are_checked(llama, metadata):
    check_match(SteeringVector({1: torch.ones(32)}, metadata), llama)
    for strict in (True, "architecture"):
        with pytest.raises(ModelError, match=rf"does not say which model it was made from, so strict={strict!r}"):
            check_match(SteeringVector({1: torch.ones(32)}, metadata), llama, strict=strict)
    with pytest.raises(ModelError, match=r"^The vector has width 16, but 'LlamaForCausalLM' .* has width 32; use"):
        check_match(SteeringVector({1: torch.ones(16)}, metadata), llama)


def test_width(llama):
    gpt2 = Holder(GPT2Config(n_embd=16, n_layer=3, n_head=4))
    with pytest.raises(ModelError, match=r"width 16 \(it was made from 'Holder' .*\), but 'LlamaForCausalLM'"):
        check_match(made_from(gpt2, width=16), llama)


@pytest.mark.parametrize("layer", [3, -4, 10**9])
def test_layer_out_of_range(llama, layer):
    with pytest.raises(ModelError, match=rf"direction at resid_post\[{layer}\].* has 3 blocks \(0 to 2\); use"):
        check_match(made_from(llama, [resid_post[layer]]), llama)


def test_another_architecture_warns_and_strict_raises(llama):
    other = with_config(llama, vocab_size=100, _name_or_path="org/other-3.1")
    vector = made_from(other)
    with pytest.warns(SteerWarning, match=r"made from 'org/other-3\.1' .*, and this model is 'LlamaForCausalLM'"):
        check_match(vector, llama)
    with pytest.raises(ModelError, match=r"'org/other-3\.1' .*'LlamaForCausalLM' .* or pass strict=False\.$"):
        check_match(vector, llama, strict=True)


# -- pitfall 56: strict means these weights ----------------------------------------------------------


def changed(model, name="model.layers.2.mlp.down_proj.weight", by=0.01):
    """A fine-tune of one matrix, as training leaves it."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = other.get_parameter(name)
        weight += by * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return other


def test_pitfall_56_strict_asks_for_the_weights_and_architecture_for_the_sizes(llama):
    vector, tuned = made_from(llama), changed(llama)
    check_match(vector, llama, strict=True)
    with pytest.raises(ModelError, match=r"same architecture but the weights .*or pass strict='architecture' to"):
        check_match(vector, tuned, strict=True)
    check_match(vector, tuned, strict="architecture")
    check_match(vector, tuned)  # moved between a model and its fine-tune on purpose
    with pytest.raises(ModelError, match="same architecture but the weights"), steer(tuned, vector, strict=True):
        pass  # pragma: no cover
    with pytest.raises(ModelError, match="same architecture but the weights"):
        functional(tuned)(vector, IDS, strict=True)
    with steer(tuned, vector, strict="architecture"):
        functional(tuned)(vector, IDS, strict="architecture")


def test_strict_refuses_a_vector_that_says_nothing_of_its_model(llama):
    nameless = SteeringVector({1: torch.ones(32)})
    functional(llama)(nameless, IDS)
    for strict in (True, "architecture"):
        with pytest.raises(ModelError, match="does not say which model"):
            functional(llama)(nameless, IDS, strict=strict)


def test_pitfall_56_a_vector_without_the_hash_says_so(llama):
    old = made_from(llama, weights=False)
    check_match(old, llama, strict="architecture")
    with pytest.raises(ModelError, match=r"not which weights it was made from: .*version of steerfn that did not"):
        check_match(old, llama, strict=True)


@pytest.mark.parametrize("strict", ["weights", "Architecture", 2, None, [True]])
def test_another_strict_is_one_sentence(llama, strict):
    with pytest.raises(ModelError, match=r"^`strict` must be True .*, 'architecture' .* or False, got "):
        check_match(made_from(llama), llama, strict=strict)


def test_the_hash_of_weights_is_of_the_values_whatever_holds_them(llama, tmp_path):
    here = weights_hash(llama)
    llama.save_pretrained(tmp_path)
    same = (
        copy.deepcopy(llama).bfloat16(),
        LlamaForCausalLM.from_pretrained(tmp_path),
        copy.deepcopy(llama).requires_grad_(False),
    )
    assert {weights_hash(model) for model in same} == {here}
    assert fingerprint(torch.compile(llama, backend="eager"), weights=True)["weights"] == here
    with steer(llama, made_from(llama), strict=True):
        assert weights_hash(llama) == here


def test_the_hash_of_weights_sees_each_tensor(llama):
    hashes = {weights_hash(changed(llama, name)) for name, _ in llama.named_parameters()}
    assert len(hashes) == len(list(llama.parameters())) and weights_hash(llama) not in hashes
    zero = copy.deepcopy(llama)
    with torch.no_grad():
        zero.model.embed_tokens.weight[:, 0] += 1.0  # not only the first column is looked at
        other = changed(zero, "model.embed_tokens.weight")
        other.model.embed_tokens.weight[:, 0] = zero.model.embed_tokens.weight[:, 0]
    assert weights_hash(zero) != weights_hash(other)


def test_weights_that_are_not_here_have_no_hash_and_strict_says_so(llama):
    empty = copy.deepcopy(llama).to("meta")
    assert weights_hash(empty) is None and weights_hash(Holder(llama.config)) is None
    with pytest.raises(ModelError, match="does not hold those of"):
        check_match(made_from(llama), empty, strict=True)
    with pytest.raises(ModelError, match="not which weights it was made from"):
        check_match(made_from(empty), llama, strict=True)


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
@pytest.mark.filterwarnings("ignore:.*_check_is_size:FutureWarning")
def test_weights_that_accelerate_keeps_elsewhere_are_read_there(llama, way, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    options = {"offload_dir": tmp_path} if way == "disk_offload" else {}
    moved = getattr(accelerate, way)(copy.deepcopy(llama), execution_device=torch.device("cpu"), **options)
    assert all(p.device.type == "meta" for p in moved.parameters())
    check_match(made_from(llama), moved, strict=True)


def test_hostile_identity(llama):
    metadata = {"model": {"name": "x\n" * 10**5, "fingerprint": ["x"] * 1000}}
    with pytest.warns(SteerWarning) as caught:
        check_match(SteeringVector({1: torch.ones(32)}, metadata), llama)
    assert len(str(caught[0].message)) < 600 and "\n" not in str(caught[0].message)


def test_load_with_a_model(llama, tmp_path):
    other = with_config(llama, vocab_size=100)
    path = save(made_from(other), tmp_path / "v.safetensors")
    assert load(path, model=other, strict=True).identical(made_from(other))
    with pytest.warns(SteerWarning, match="their architectures differ") as caught:
        load(path, model=llama)
    assert caught[0].filename == __file__
    with pytest.raises(ModelError, match="their architectures differ"):
        load(path, model=llama, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)
