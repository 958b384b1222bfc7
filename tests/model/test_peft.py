"""Models inside PEFT's wrappers: at alpha 0 a context is bitwise the wrapped model; adapters may be added inside."""

import pytest
import torch
from families import FAMILIES, build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import everywhere_in, token_ids, vector_at
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

import steerfn as sf

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),  # what PEFT sets or leaves out by itself
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:target_parameters=:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:transformers lets .* read the padding"),  # equal all the same
]

FEW = ["llama", "gpt2", "gemma2", "gpt_neox", "jamba", "falcon_h1"]
families = pytest.mark.parametrize(
    "family", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(FAMILIES) if name not in FEW)]
)
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


def with_lora(model):
    """LoRA on every linear module that PEFT can wrap, with weights that matter."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, settings).eval()


def padded(rows=2, length=7):
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :4] = 0
    return {"input_ids": token_ids(rows, length), "attention_mask": mask}


@families
def test_pitfall_39_lora_at_alpha_0_is_bitwise_the_wrapped_model(family):
    """Padded rows, masks that transformers infers from pads, and what `generate` passes on."""
    try:
        model = with_lora(build(family))
        found = sf.layout(model)
        v = vector_at(model, sf.resid_post[found.n_layers - 1], scale=3.0)
        inferred = {"input_ids": padded()["input_ids"] * padded()["attention_mask"]}
        plain = [model.generate(**each, **GREEDY) for each in (padded(), inferred)]
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        if isinstance(error, sf.SteerError):  # refused without PEFT too, or it is ours
            with pytest.raises(sf.ModelError):
                sf.layout(build(family))
        pytest.skip(f"PEFT does not wrap it, or it does not run so: {error!r:.80}")
    with torch.no_grad():
        logits = model(**padded()).logits
    with unchanged(model), sf.steer(model, v, 0.0):
        again = [model.generate(**each, **GREEDY) for each in (padded(), inferred)]
        with torch.no_grad():
            assert_same_bits(model(**padded()).logits, logits)
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)
    with sf.steer(model, v), torch.no_grad():
        assert not same_bits(model(**padded()).logits, logits)


@pytest.mark.parametrize("settings", [peft.PromptTuningConfig, peft.PrefixTuningConfig], ids=["prompt", "prefix"])
def test_virtual_tokens_at_alpha_0_are_bitwise_the_wrapped_model(settings):
    torch.manual_seed(0)
    model = peft.get_peft_model(build("llama"), settings(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    plain = model.generate(**padded(), **GREEDY)
    with torch.no_grad():
        logits = model(**padded()).logits
        with sf.steer(model, vector_at(model, sf.resid_post[1], scale=3.0), 0.0):
            assert torch.equal(model.generate(**padded(), **GREEDY), plain)
            assert_same_bits(model(**padded()).logits, logits)
        with sf.steer(model, vector_at(model, sf.resid_post[1], scale=3.0)):
            model.generate(**padded(), **GREEDY)
            assert not same_bits(model(**padded()).logits, logits)


def test_the_base_model_under_a_context_on_the_wrapper_and_the_other_way_round():
    """With a scope that has to know of `generate`."""
    model = with_lora(build("llama"))
    base = model.base_model.model
    op = sf.at(sf.generated, sf.add(vector_at(model, sf.resid_post[1], scale=3.0)))
    found = []
    for opened in (model, base):
        for called in (model, base):
            with sf.steer(opened, op):
                found.append(called.generate(**padded(), **GREEDY))
    assert all(torch.equal(each, found[0]) for each in found)
    assert not torch.equal(found[0], model.generate(**padded(), **GREEDY))


def test_an_adapter_added_inside_leaves_nothing():
    model = build("llama")
    settings = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    with sf.steer(model, everywhere_in(model)):
        torch.manual_seed(0)
        model.add_adapter(settings)
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == []
    other = build("llama")
    torch.manual_seed(0)
    other.add_adapter(settings)
    with torch.no_grad():
        assert_same_bits(model(**padded()).logits, other(**padded()).logits)


@pytest.mark.parametrize("wrap", [with_lora, lambda model: model], ids=["lora", "plain"])
def test_prefill_computes_the_logits_of_one_token(wrap):
    model, shapes = wrap(build("llama")), []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: shapes.append(out.shape[1]))
    with sf.steer(model, vector_at(model, sf.resid_post[1])):
        model.generate(**padded(), **GREEDY)
    handle.remove()
    assert shapes == [1] * 4


def test_an_image_and_lora():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=8, patch_size=2
    )
    text = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=98)).eval()
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False
    )
    model = peft.get_peft_model(model, settings).eval()
    ids = torch.cat([torch.full((1, 16), 98), token_ids(1, 4)], 1)
    given = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8), "attention_mask": torch.ones_like(ids)}
    plain = model.generate(**given, **GREEDY)
    v = vector_at(model, sf.resid_post[1], scale=3.0)
    with unchanged(model), sf.steer(model, v, 0.0):
        assert torch.equal(model.generate(**given, **GREEDY), plain)
    with sf.steer(model, v), torch.no_grad():
        inside = model(**given).logits
    with torch.no_grad():
        assert not same_bits(inside, model(**given).logits)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        ids = token_ids(1, 6, seed=i)[0]
        return {"input_ids": ids, "labels": ids, "not_an_input": torch.tensor(1)}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_trainer_steps_with_lora(tmp_path, monkeypatch, alpha):
    """At alpha 0 the weights after two steps are those of a run without a context; columns are dropped all the same."""
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)  # a folder here has that name
    found = []
    for inside in (False, True):
        model = with_lora(build("llama"))
        settings = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, seed=0, learning_rate=1e-2,
        )  # fmt: skip
        if inside:
            with sf.steer(model, vector_at(model, sf.resid_post[1]), alpha):
                Trainer(model=model, args=settings, train_dataset=Rows()).train()
        else:
            Trainer(model=model, args=settings, train_dataset=Rows()).train()
        found.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    same = [torch.equal(p, found[1][name]) for name, p in found[0].items()]
    assert all(same) if alpha == 0 else not any(same)
