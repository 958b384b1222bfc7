"""A decoder row of SAELens' files: the row, its site, its norm, and every wrong file."""

import json

import pytest
import torch
from safetensors.torch import save_file
from steering import token_ids

import steerfn as sf

W_DEC = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
HOOK = "blocks.2.hook_resid_post"


def written(folder, config=None, tensors=None):
    """A folder as SAELens writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_dec": W_DEC, "W_enc": W_DEC.T.contiguous(), "b_dec": torch.zeros(32)} if tensors is None else tensors
    save_file(tensors, folder / "sae_weights.safetensors")
    if config is not None:
        (folder / "cfg.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_the_row_at_the_site_that_the_configuration_names(tmp_path):
    folder = written(tmp_path / "layer_2", {"hook_name": HOOK, "model_name": "tiny", "neuronpedia_id": "tiny/2"})
    for path in (folder, str(folder), folder / "sae_weights.safetensors"):
        v = sf.discover.from_sae(path, 3)
        assert v.sites == (sf.resid_post[2],) and torch.equal(v[2], W_DEC[3])
        assert dict(v.metadata) == {
            "method": "sae",
            "sae": "layer_2",
            "feature": 3,
            "features": 7,
            "hook": HOOK,
            "sae_model": "tiny",
            "neuronpedia": "tiny/2",
        }


@pytest.mark.parametrize(
    ("config", "site"),
    [
        ({"hook_name": "blocks.0.hook_resid_pre"}, sf.resid_pre[0]),
        ({"hook_name": "blocks.11.hook_resid_mid"}, sf.resid_mid[11]),
        ({"hook_name": "blocks.3.hook_mlp_out"}, sf.mlp_out[3]),
        ({"hook_name": "blocks.3.hook_attn_out"}, sf.attn_out[3]),
        ({"hook_point": HOOK}, sf.resid_post[2]),
        ({"d_in": 32, "metadata": {"hook_name": HOOK}}, sf.resid_post[2]),
        ({"hook_name": None, "metadata": {"hook_name": HOOK}}, sf.resid_post[2]),
    ],
)
def test_hooks_of_older_and_newer_files(tmp_path, config, site):
    assert sf.discover.from_sae(written(tmp_path, config), 0).sites == (site,)


def test_a_given_site_counts_and_needs_no_configuration(tmp_path):
    assert sf.discover.from_sae(written(tmp_path / "a"), 1, 1).sites == (sf.resid_post[1],)
    folder = written(tmp_path / "b", {"hook_name": "blocks.2.attn.hook_z"})
    v = sf.discover.from_sae(folder, 1, [sf.resid_pre[1], sf.resid_post[1]])
    assert v.sites == (sf.resid_pre[1], sf.resid_post[1]) and torch.equal(v[sf.resid_pre[1]], W_DEC[1])


def test_the_norm_is_as_asked(tmp_path):
    folder = written(tmp_path, {"hook_name": HOOK})
    v = sf.discover.from_sae(folder, 5, norm=12.5)
    assert v.magnitude[sf.resid_post[2]] == pytest.approx(12.5)
    assert v.cosine(sf.discover.from_sae(folder, 5)) == pytest.approx(1.0)


def test_half_precision_rows_come_in_float32(tmp_path):
    v = sf.discover.from_sae(written(tmp_path, {"hook_name": HOOK}, {"W_dec": W_DEC.bfloat16()}), 6)
    assert v.dtype == torch.float32 and torch.equal(v[2], W_DEC[6].bfloat16().float())


def test_it_steers(tmp_path, tiny):
    v = sf.discover.from_sae(written(tmp_path, {"hook_name": "blocks.1.hook_resid_post"}), 2)
    with torch.no_grad():
        _, before = sf.capture(tiny, 1)(token_ids())
        with sf.steer(tiny, v, alpha=2.0):
            _, after = sf.capture(tiny, 1)(token_ids())
    delta = after[sf.resid_post[1]] - before[sf.resid_post[1]]
    torch.testing.assert_close(delta, (2 * W_DEC[2]).expand_as(delta), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("feature", "options", "message"),
    [
        (7, {}, "Feature 7 is out of range:"),
        (-1, {}, "has 7, from 0 to 6."),
        (True, {}, "`feature` must be an integer, got True; it is the number of a row."),
        ("3", {}, "`feature` must be an integer, got '3'; it is the number of a row."),
        (0, {"norm": 0}, "`norm` must be a finite number > 0, got 0; None keeps the length of the row."),
        (
            0,
            {"norm": float("nan")},
            "`norm` must be a finite number > 0, got nan; None keeps the length of the row.",
        ),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path, feature, options, message):
    with pytest.raises(sf.DataError) as caught:
        sf.discover.from_sae(written(tmp_path, {"hook_name": HOOK}), feature, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, None, "No cfg.json beside"),
        ({"d_in": 32}, None, "names a hook; pass the site, such as site=sf.resid_post[12]."),
        ({"hook_name": "blocks.2.attn.hook_z"}, None, "'blocks.2.attn.hook_z', which is not a site of the residual"),
        ({"hook_name": "blocks.2.hook_mlp_in"}, None, "'blocks.2.hook_mlp_in', which is not a site of the residual"),
        ("{not json", None, "cfg.json': Expecting property name"),
        ("[1]", None, "it is not the JSON object of an SAE"),
        (
            {"hook_name": HOOK},
            {"decoder": W_DEC, "b": W_DEC[0].clone()},
            "holds no W_dec but b, decoder; pass an SAE in SAELens",
        ),
        ({"hook_name": HOOK}, {"W_dec": W_DEC[0]}, "has shape [32]; an SAE has [features, d_model]."),
        ({"hook_name": HOOK}, {"W_dec": torch.ones(2, 3, dtype=torch.int64)}, "holds torch.int64; an SAE's decoder"),
        ({"hook_name": HOOK}, {"W_dec": torch.full((2, 3), torch.nan)}, "Row 0 of W_dec in"),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path, config, tensors, message):
    with pytest.raises(sf.FileError) as caught:
        sf.discover.from_sae(written(tmp_path, config, tensors), 0)
    assert message in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(sf.FileError, match="there is no such file; pass the folder that holds sae_weights.safetensors"):
        sf.discover.from_sae(tmp_path, 0, 2)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(sf.FileError, match="copy the original file again"):
        sf.discover.from_sae(tmp_path, 0, 2)
    with pytest.raises(sf.FileError, match="The path of an SAE must be a str or a Path, not 5."):
        sf.discover.from_sae(5, 0)


def test_only_the_row_is_read(tmp_path, monkeypatch):
    """However large the decoder is: nothing but slices of one row leave the file."""
    import steerfn.discover._from_sae as module

    folder, asked = written(tmp_path, {"hook_name": HOOK}), []

    class Slice:
        def __init__(self, inner):
            self.inner = inner

        def get_shape(self):
            return self.inner.get_shape()

        def __getitem__(self, key):
            asked.append(key)
            return self.inner[key]

    class Opened:
        def __init__(self, *args, **kwargs):
            self.inner = opening(*args, **kwargs)

        def __enter__(self):
            self.file = self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return Slice(self.file.get_slice(name))

    opening = module.safe_open
    monkeypatch.setattr(module, "safe_open", Opened)
    sf.discover.from_sae(folder, 4)
    assert asked == [slice(4, 5)]
