"""Every recipe runs, as one program, on the demo model, and prints the effect that its page speaks of."""

import copy
import json
import re
from pathlib import Path

import pytest
from served import served

from steerfn import serving

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
SHARED = ROOT.parent / "shared" / "data"
FILES = {
    "generate_dataset.json": "caa/generate/sycophancy.json",
    "test_dataset_ab.json": "caa/test_ab/sycophancy.json",
    "harmful_train.json": "refusal/harmful_train.json",
    "harmless_train.json": "instructions/vicuna_question.jsonl",
    "TruthfulQA.csv": "truthfulqa/TruthfulQA.csv",
    "mc_task.json": "truthfulqa/mc_task.json",
}
"""Published files that recipes read, under the names that they have in their repositories."""


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (RECIPES / f"{page}.md").read_text(encoding="utf8"), re.DOTALL)


def number(pattern, out):
    """The number that a recipe printed in the place of the group."""
    match = re.search(pattern, out)
    assert match, f"{pattern} is not in:\n{out}"
    return float(match[1])


@pytest.fixture
def run(demo, tmp_path, monkeypatch, capsys):
    """Runs the code of a page in an empty folder that has the files which it reads, and gives what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: (demo[0], copy.deepcopy(demo[1])))  # recipes set its template

    def of(page, code=None):
        blocks = blocks_of(page) if code is None else code
        for name in [name for name in FILES if f'"{name}"' in "".join(blocks)]:
            source = SHARED / FILES[name]
            if not source.exists():
                pytest.skip(f"the published file {name} is not in shared/data")
            if source.suffix == ".jsonl":  # of questions in several turns: the first are requests
                lines = map(json.loads, source.read_text(encoding="utf8").splitlines())
                Path(name).write_text(json.dumps([{"instruction": line["turns"][0]} for line in lines]))
            else:
                Path(name).symlink_to(source)
        exec(compile("\n".join(blocks), f"{page}.md", "exec"), {"__name__": "recipe"})
        return capsys.readouterr().out

    return of


def test_the_index_names_every_recipe():
    index = (RECIPES / "index.md").read_text(encoding="utf8")
    pages = {path.stem for path in RECIPES.glob("*.md")} - {"index"}
    toctree = re.search(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)[1]
    assert {line for line in toctree.split() if not line.startswith(":")} == pages
    assert {Path(target).stem for target in re.findall(r"\]\(([\w-]+\.md)\)", index)} == pages


@pytest.mark.parametrize("page", sorted(path.stem for path in RECIPES.glob("*.md") if path.stem != "index"))
def test_recipes_are_short(page):
    text = (RECIPES / f"{page}.md").read_text(encoding="utf8")
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)) == 1
    for block in re.findall(r"```py(?:thon)?\n(.*?)```", text, re.DOTALL):
        assert sum(bool(line.strip()) for line in block.splitlines()) < 30
        compile(block, page, "exec")


@pytest.mark.docs
@pytest.mark.timeout(900)
class TestRecipes:
    def test_caa_moves_letters_and_not_the_choice(self, run):
        out = run("caa")
        shown = dict(re.findall(r"alpha \+4 (\w+): .* -> ([\d.]+) ", out))
        before = dict(re.findall(r"alpha \+4 (\w+): ([\d.]+) ", out))
        moved = {name: abs(float(shown[name]) - float(before[name])) for name in shown}
        assert moved["p_first_letter"] > 0.1 and moved["p_match"] < 0.03
        assert "{'A': 16, 'B': 16}" in out or "{'A': 32, 'B': 32}" in out
        assert out.count("an effect: False") == 4

    def test_refusal(self, run):
        out = run("refusal")
        assert number(r"as it was: .* ([\d.]+)\n", out) > 1 > 0.001 > number(r"baked: .* ([\d.]+)\n", out)
        assert "refusing raises refusal_log_odds" in out and "and raises it by" in out

    def test_persona(self, run):
        out = run("persona")
        assert "gloomy lowers sentiment" in out and "and lowers it by" in out
        assert number(r"\nsteered: projection (\S+)", out) > number(r"unsteered: projection (\S+)", out) + 1

    def test_truthfulness(self, run):
        out = run("truthfulness")
        assert number(r"right (\S+) of the time", out) > 0.65
        assert number(r"AUC [\d.]+ \(([\d.]+) to", out) > 0.6
        assert re.search(r"mc1 .* -> .* False", out)  # as the page says

    def test_conditional(self, run):
        out = run("conditional")
        assert number(r"F1 ([\d.]+) on \d+ \+ \d+ held-out", out) > 0.8
        assert number(r"declining raises refusal_log_odds by (\S+) log-odds against the unsteered", out) > 1
        assert "others unchanged: 6 of 6" in out

    def test_a_guard_cannot_be_switched_off(self, run, demo, tmp_path):
        *before, client = blocks_of("guarded-vllm")
        assert "the checkpoint answers as live steering does: True" in run("guarded-vllm", before)
        guard = {"vector": "safe-1", "alpha": 2.0}
        application = serving.app(
            *demo, tmp_path, default_steering=guard, audit=tmp_path / "audit.jsonl", limits=serving.Limits(max_alpha=4)
        )
        with served(application) as address:
            out = run("guarded-vllm", [client.replace("http://127.0.0.1:8000", address)])
        assert "safe-1 2.0 default" in out and "refused: 4" in out and "the same answer: True" in out
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert any("refused" in line.values() for line in lines)

    def test_gguf(self, run):
        out = run("gguf")
        assert "SteeringVector(resid_post[10]" in out and out.count("same tokens as live steering: True") == 2
        assert number(r"from the unsteered model's: (\d)", out) == 2

    def test_agent(self, run):
        out = run("agent")
        calls = dict(re.findall(r"(\w+): calls (\[.*\])", out))
        answers = dict(re.findall(r"(\w+): answers (.*)", out))
        assert calls["plain"] == calls["steered"] and "'weather'" in calls["plain"]
        assert answers["plain"] != answers["steered"]

    def test_ab_test(self, run):
        out = run("ab-test")
        assert out.count("lowers sentiment by") == 2 and out.count("and lowers it by") == 2
        assert "between block 10 and block 18" in out
        assert Path("ab.html").stat().st_size > 1000 and json.loads(Path("ab.json").read_text())

    def test_paper_figure(self, run):
        out = run("paper-figure")
        share = re.search(r"share.*\n.*\n *v +resid_post\[18\] +(.*)", out)[1].split()
        assert float(share[0]) < 0.2 and float(share[-1]) > 0.9
        pdf = Path("figure.pdf").read_bytes()
        assert float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1]) == pytest.approx(3.25 * 72)
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf
        assert "<text" in Path("figure.svg").read_text(encoding="utf8")

    def test_large_models(self, run):
        out = run("large-models")
        table = "".join(line for line in out.splitlines(keepends=True) if line.startswith("|"))
        assert table in (RECIPES / "large-models.md").read_text(encoding="utf8")
        assert "8.03e9" in table and "70.55e9" in table
        assert "'disk'" in out and "bit for bit: True" in out

    def test_coming_from_a_hook(self, run):
        assert "agree: True and differ from the plain model: True" in run("coming-from")
