"""The file that `lm_eval --model steered` reads."""

import families
import pytest
import torch

import steerfn as sf

V = sf.SteeringVector({sf.resid_post[0]: torch.ones(32), sf.resid_post[2]: torch.arange(32.0)})


def entries(path):
    return torch.load(path, weights_only=True)


def test_each_direction_is_an_entry_of_its_block(tmp_path):
    found = entries(sf.to_lm_eval(V, tmp_path / "v.pt", alpha=-1.5))
    assert list(found) == ["layers.0", "layers.2"]
    for name, entry in found.items():
        assert torch.equal(entry["steering_vector"], V[sf.resid_post[int(name[-1])]])
        del entry["steering_vector"]
        assert entry == {"action": "add", "steering_coefficient": -1.5, "bias": None, "head_index": None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_names_are_those_of_modules_inside_the_base_model(tmp_path, family):
    model = families.build(family)
    width = sf.layout(model).d_model
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(width), sf.resid_post[-1]: torch.ones(width)})
    modules = dict(model.base_model.named_modules())
    names = list(entries(sf.to_lm_eval(v, tmp_path / "v.pt", model=model)))
    assert len(names) == 2
    for name, layer in zip(names, (1, sf.layout(model).n_layers - 1), strict=True):
        assert modules[name] is model.get_submodule(sf.layout(model).blocks[layer].path)


def test_what_the_harness_cannot_say_is_refused(tmp_path):
    for site in (sf.attn_out[1], sf.resid_post[-1]):
        with pytest.raises(sf.SiteError, match="cannot say"):
            sf.to_lm_eval(sf.SteeringVector({site: torch.ones(8)}), tmp_path / "v.pt")
    with pytest.raises(sf.FileError, match=r"name it .v\.pt."):
        sf.to_lm_eval(V, tmp_path / "v.safetensors")
    gpt2 = V.with_metadata(model={"architecture": "GPT2LMHeadModel"})
    with pytest.raises(sf.ModelError, match="pass model="):
        sf.to_lm_eval(gpt2, tmp_path / "v.pt")
    with pytest.raises(sf.FileError, match="cannot be written to"):
        sf.to_lm_eval(V, tmp_path / "none" / "v.pt")


@pytest.mark.parametrize("alpha", ["2", float("nan"), True, None])
def test_a_strength_is_a_finite_number(alpha, tmp_path):
    with pytest.raises(sf.DataError, match="`alpha` must be a finite number, got"):
        sf.to_lm_eval(sf.SteeringVector({sf.resid_post[1]: torch.ones(8)}), tmp_path / "v.pt", alpha=alpha)
    assert not list(tmp_path.iterdir())
