"""`steerfn zoo`: what it lists, shows and writes."""

import json

import pytest

import steerfn as sf
from steerfn.cli import main


def test_list_show_and_get(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in sf.zoo.list().names)
    assert main(["zoo", "list", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert [each["name"] for each in records] == [each.name for each in sf.zoo.list()]
    assert main(["zoo", "show", "refusal"]) == 0
    assert capsys.readouterr().out.strip() == sf.zoo.card("refusal").strip()
    assert main(["zoo", "get", "refusal"]) == 0
    said = capsys.readouterr().out
    assert sf.load("refusal.safetensors").identical(sf.zoo.load("refusal"))
    alpha = sf.zoo.load("refusal").metadata["evidence"]["alpha"]
    assert f"steerfn generate --vector refusal.safetensors --alpha {alpha} " in said
    assert main(["zoo", "get", "refusal", "--out", "mine.gguf"]) == 0
    assert (tmp_path / "mine.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "refusl"], "Did you mean 'refusal'?"),
        (["list", "--zoo", "nowhere"], "There is no folder 'nowhere' to be a zoo"),
        (["get", "refusal", "--out", "none/x.safetensors"], "there is no folder 'none'"),
        (["list", "--zoo", "hf://zoo"], "is not an address on the hub"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, said):
    assert main(["zoo", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("steerfn: ") and said in error and error.count("\n") == 1


def test_a_vector_of_the_zoo_is_taken_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "zoo:refusal", "refusal.safetensors", "--alpha", "2"]) == 0
    assert sf.load("refusal.safetensors").allclose(2.0 * sf.zoo.load("refusal"))
    capsys.readouterr()
    assert main(["compare", "Hi.", "--vector", "zoo:refusals"]) == 2
    assert "The zoo has no vector 'refusals'. Did you mean 'refusal'?" in capsys.readouterr().err
    assert main(["generate", "Hi.", "--vector", "zoo:refusal", "--max-new-tokens", "2"]) == 0
    refused = capsys.readouterr().out
    assert main(["generate", "Hi.", "--vector", "refusal.safetensors", "--alpha", "0.5", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.partition("\n")[2] == refused.partition("\n")[2]
