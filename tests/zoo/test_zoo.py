"""The zoo: what is put in is found again, for its model only; and what comes with the package has its evidence."""

import functools
import json
import warnings
from pathlib import Path

import pytest
import yaml
from families import build, shared
from hub import stand_in
from words import words

import steerfn as sf
from steerfn.values.files import vector_sha256
from steerfn.zoo._entries import OURS

SIDES = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u", "v w a"]
QUIET = {"progress": False, "chat": False}


@functools.cache
def made():
    """A vector of the tiny model, and a report on it."""
    model, tokenizer = shared("llama"), words(template=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("steerfn.reporting._document.data_url", lambda _: "data:image/svg+xml;base64,")
        vector = sf.mean_difference(model, tokenizer, *SIDES, 1, **QUIET)
        texts = dict(zip(("positive", "negative"), SIDES, strict=True))
        report = sf.report(
            model, tokenizer, vector, texts, prompts=["a b", "c d"], passages=["a b c d"], metrics=["length"],
            max_new_tokens=2, resamples=99, controls=1, alpha=1.5, **QUIET,
        )  # fmt: skip
    return vector, report


@pytest.fixture
def zoo(tmp_path):
    sf.zoo.add("happy", *made(), tmp_path / "mine", licence="apache-2.0")
    return tmp_path / "mine"


def quietly(*arguments, **options):
    with pytest.warns(sf.SteerWarning, match="The report on the zoo's 'happy' says: No effect"):
        return sf.zoo.load(*arguments, **options)


def test_what_is_added_is_listed_shown_and_loaded(zoo):
    vector, report = made()
    [entry] = sf.zoo.list(zoo)
    assert (entry.name, entry.key) == ("happy", "LlamaForCausalLM/happy") and entry.sites == ("resid_post[1]",)
    assert entry.evidence == {
        "alpha": 1.5,
        "verdict": report.findings["verdict"]["level"],
        "headline": report.findings["verdict"]["headline"],
    }
    loaded = quietly("happy", zoo, model=shared("llama"), strict=True)
    assert vector_sha256(loaded) == vector_sha256(vector) and loaded.metadata["evidence"] == entry.evidence
    card = sf.zoo.card("happy", zoo)
    assert card == sf.card(report, name="happy", licence="apache-2.0", load="sf.zoo.load('happy', 'mine', model=model)")
    assert str(zoo.parent) not in card + json.dumps(dict(loaded.metadata))  # where it lay is nobody's business
    text = str(sf.zoo.list(zoo))
    assert "happy" in text and "resid_post[1]" in text and "1.5" in text and entry.evidence["headline"][:9] in text
    assert len(sf.zoo.list(zoo, model=shared("llama"))) == 1 and "no vector" in str(sf.zoo.list(zoo, model=other()))


@functools.cache
def other():
    return build("gpt2")


def test_another_models_vector_is_refused_and_those_that_fit_are_named(zoo):
    with pytest.raises(
        sf.ModelError, match=r"'happy' was made from LlamaForCausalLM, and this model is GPT2.*no vector"
    ):
        sf.zoo.load("happy", zoo, model=other())
    identity = sf.values.fingerprint(other())
    fits = sf.SteeringVector({1: made()[0][1]}, {"model": identity})
    sf.save(fits, zoo / "calm.safetensors")
    with pytest.raises(sf.ModelError, match="these fit it: calm"):
        sf.zoo.load("happy", zoo, model=other())
    assert sf.zoo.list(zoo, model=other()).names == ("calm",)


def test_of_one_name_the_one_that_fits_is_loaded_and_without_a_model_it_is_asked_which(zoo):
    (zoo / "gpt2").mkdir()
    fits = sf.SteeringVector({0: made()[0][1]}, {"model": sf.values.fingerprint(other())})
    sf.save(fits, zoo / "gpt2" / "happy.safetensors")
    assert sf.zoo.load("happy", zoo, model=other()).layers == (0,)
    assert quietly("happy", zoo, model=shared("llama")).layers == (1,)
    with pytest.raises(
        sf.SteerError, match="2 vectors of the zoo have the name 'happy': pass one of 'LlamaForCausalLM/h"
    ):
        sf.zoo.load("happy", zoo)
    assert sf.zoo.load("gpt2/happy", zoo).layers == (0,)


def test_a_zoo_on_the_hub_is_one_of_a_commit_and_read_from_the_cache(tmp_path):
    vector, report = made()
    with stand_in(tmp_path / "cache") as hub:
        address = sf.zoo.add("happy", vector, report, "hf://user/zoo")
        [(commit, files)] = hub.commits["user/zoo"]
        assert sorted(files) == [f"LlamaForCausalLM/happy.{suffix}" for suffix in ("md", "safetensors")]
        assert address == f"hf://user/zoo@{commit}/LlamaForCausalLM/happy.safetensors"
        for online in (True, False):
            hub.hang_up = not online
            [entry] = sf.zoo.list("hf://user/zoo")
            assert entry.address == address
            loaded = quietly("happy", "hf://user/zoo", model=shared("llama"))
            assert loaded.metadata["hub"]["revision"] == commit and vector_sha256(loaded) == vector_sha256(vector)
            assert "sf.zoo.load('happy', 'hf://user/zoo', model=model)" in sf.zoo.card("happy", "hf://user/zoo")
        with pytest.raises(sf.FileError, match="names a file; a zoo is a whole repository"):
            sf.zoo.list(address)


def test_a_file_that_is_no_vector_is_named_and_left_out(zoo):
    (zoo / "broken.safetensors").write_bytes(b"x")
    with pytest.warns(sf.SteerWarning, match="The zoo has a file that is no vector: Cannot load '.*broken"):
        assert sf.zoo.list(zoo).names == ("happy",)


def test_what_cannot_be_added_says_why(tmp_path):
    vector, report = made()
    with pytest.raises(
        sf.DataError, match="The report is on a vector with SHA-256 .* report on the vector that is added"
    ):
        sf.zoo.add("happy", 2 * vector, report, tmp_path)
    for name in ("../happy", "a/b", "", ".hidden", 3):
        with pytest.raises(sf.DataError, match="letters, digits and"):
            sf.zoo.add(name, vector, report, tmp_path)
    path = Path(sf.zoo.add("happy", vector, report, tmp_path))
    with pytest.raises(sf.FileError, match="is in the zoo already; choose another name, or pass overwrite=True"):
        sf.zoo.add("happy", vector, report, tmp_path)
    assert sf.zoo.add("happy", vector, report, tmp_path, overwrite=True) == str(path)
    assert sorted(each.name for each in path.parent.iterdir()) == ["happy.md", "happy.safetensors"]
    findings = {**report.findings, "vector": {**report.findings["vector"], "match": "other"}}
    with pytest.raises(sf.ModelError, match="that the vector is of this model is not known"):
        sf.zoo.add("sad", vector, type(report)("", findings), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(sf.FileError, match="cannot be written: .*; choose another place"):
        sf.zoo.add("happy", vector, report, tmp_path / "file")


def test_what_is_not_there_says_what_is(zoo):
    with pytest.raises(sf.DataError, match="The zoo has no vector 'hapy'. Did you mean 'happy'. It has happy"):
        sf.zoo.load("hapy", zoo)
    with pytest.raises(sf.FileError, match="There is no folder .*; check its name, or make one with sf.zoo.add"):
        sf.zoo.list(zoo / "none")
    (zoo / "LlamaForCausalLM" / "happy.md").unlink()
    with pytest.raises(sf.FileError, match="'happy' has no card that could be read .* write 'happy.md' beside it"):
        sf.zoo.card("happy", zoo)


def test_what_comes_with_the_package_is_small_and_says_what_its_report_found():
    ours = list(sf.zoo.list())
    page = (Path(__file__).parents[2] / "docs" / "guides" / "zoo.md").read_text()
    assert sum(path.stat().st_size for path in OURS.rglob("*")) < 200_000
    assert {each.evidence["verdict"] for each in ours} > {"shown"}, "some that worked, and some that did not"
    for each in ours:
        card = sf.zoo.card(each.name)
        head = yaml.safe_load(card.split("---\n")[1])
        assert head["base_model"] == each.model["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert head["license"] == "apache-2.0" and head["tags"] == ["steerfn", "steering-vector"]
        assert card.replace("\\", "").count(each.evidence["headline"]) == 1 and each.behaviour
        assert sf.files.describe(each.address)["sha256"] in card
        assert (
            f"sf.add(vector, {each.evidence['alpha']!r})" in card and f"sf.zoo.load({each.name!r}, model=model)" in card
        )
        assert "Apache-2.0" in card and "What could not be shown" in card
        assert f"| {each.name} |" in page and each.evidence["headline"] in page.replace("\\", "")


def test_ours_fit_the_demo_model_and_warn_of_what_was_not_shown(demo):
    model, _ = demo
    for each in sf.zoo.list(model=model):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            vector = sf.zoo.load(each.name, model=model)
        assert vector.d_model == model.config.hidden_size and vector.metadata["evidence"] == each.evidence
        assert bool(said) == (each.evidence["verdict"] != "shown")
