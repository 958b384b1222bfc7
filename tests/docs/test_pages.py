"""The code of the pages runs, each page as one program, on the real model; their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "start/five-minutes": ("LlamaForCausalLM: 30 blocks", "True torch.Size", "unsteered"),
    "start/choosing": ("<- best", "propensity", "alpha"),
    "guides/agents": ("steered and plain differ: True", "LlamaIndex answers alike: True"),
    "guides/conditions": (
        "<- chosen",
        "held-out texts (always yes: ",
        "unchanged: True",
        'left alone: >{"name": "weather"',
    ),
    "guides/engines": ("SteeringVector(resid_post[6]", "steerfn.json"),
    "guides/discovery": ("<- best", "Quality(AUC"),
    "guides/compare": ("unsteered", "Steering changed", "{+", "10 prompts, with and without"),
    "guides/plots": ("drawn: next", "drawn: tokens", "drawn: separation"),
    "guides/protocols": ("anti_steerable", "True", "Strengths chosen", "perplexity_ratio"),
    "guides/report": ("Report on the steering vector “happy”", "Tested on 12 prompts"),
    "guides/transfer": ("Carried over: cosine", "<- chosen"),
    "guides/zoo": ("what its report says", "base_model: HuggingFaceTB/SmolLM2-135M-Instruct", "happy again: True"),
    "guides/sweeps": ("propensity", "15 configurations x 4 prompts", "exclamations"),
}
"""Pages by their path, with words that their code prints."""
ELSEWHERE = {
    "guides/evidence": "evaluate/test_compare_vectors.py",
    "background/statistics": "evaluate/test_compare_vectors.py",
    "guides/metrics": "metrics/test_registry.py",
    "guides/sensitivity": "run/test_sensitivity.py",
    "guides/serving": "serving/test_changes.py",
}
"""Pages whose code is run by tests of their subject."""
NOT_HERE = {"guides/dashboard", "guides/distributed", "guides/large-models", "guides/vllm"}
"""Fragments that take a browser, several processes or devices, or another engine, each with tests of its own."""


def blocks(page):
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf8"), re.DOTALL)


@pytest.mark.docs
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch, of vmap over fused attention
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(demo, page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    exec(compile("\n".join(blocks(page)), f"{page}.md", "exec"), {"__name__": "page"})
    out = capsys.readouterr().out
    assert blocks(page) and not [words for words in PAGES[page] if words not in out], out[-3000:]


def test_every_page_with_code_is_run():
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "recipes" not in path.parts}
    assert {page for page in pages if blocks(page)} == {*PAGES, *ELSEWHERE, *NOT_HERE}
    for page, test in ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / "tests" / test).read_text(encoding="utf8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda p: p.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
