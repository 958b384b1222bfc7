"""A report on a tiny model: every section, what is in it, and that nothing in it is anyone's markup."""

import functools
import hashlib
import html
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from families import build, shared
from options import assert_changes, optional
from snapshot import unchanged
from steering import vector
from words import words

import steerfn as sf
from steerfn.reporting._material import MATCHES
from steerfn.reporting._report import report as function

DATA = {
    "positive": ["a b c", "d e f g", "h i", "j k l m n", "b d", "c c a", "x y z"],
    "negative": ["o p", "q r s t", "u", "v w a", "t t", "s o u", "r"],
}
PROMPTS = ["a b c d", "d e f g a", "b b", "c c d", "e a b f", "g h", "i j k l", "m", "n o p", "q s r"]
PASSAGES = ["a b c d e f", "g h i j k", "l m n o p q r"]
V = vector(sf.resid_post[1], scale=2.0).with_metadata(
    method="mean_difference", counts={"positive": 9, "negative": 8}, position="mean", chat=False
)
# Of the tiny model's tokens these are words: without the others every text has some.
WORDS = [0, 1, 2, *range(31, 99)]
FAST = {
    "prompts": PROMPTS, "passages": PASSAGES, "max_new_tokens": 6, "resamples": 199, "controls": 1,
    "suppress_tokens": WORDS,
}  # fmt: skip
QUIET = {"progress": False, "chat": False}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\x1b[31m\u202e"


def late(texts):
    """How late in the alphabet the words of a text are."""
    return [float(np.mean([ord(word[0]) - 96 for word in text.split()] or [0])) for text in texts]


def reported(model=None, vector=V, data=DATA, metrics=(late,), drawn=False, **options):
    """A report; half of its time would go into pictures, which are drawn where a test asks for them."""
    model = shared("llama") if model is None else model
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr("steerfn.reporting._document.data_url", lambda _: "data:image/svg+xml;base64,")
        return sf.report(model, words(template=True), vector, data, metrics=list(metrics), **FAST | QUIET | options)


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.headings, self.ids, self.links = [], set(), [], [], []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self._heading = tag == "h2"

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False


@functools.cache
def usual():
    """The report without options."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return reported(drawn=True)


@pytest.fixture
def found():
    return usual()


def test_every_section_is_there_and_in_the_contents(found):
    page = Page(found.html)
    assert page.headings == [
        "Verdict",
        "1 What the vector is",
        "2 How it was made",
        "3 How well it tells the data apart",
        "4 What it does",
        "5 Side effects",
        "6 Controls",
        "7 Examples",
        "8 What this does not show",
        "9 Hashes, and how to repeat it",
        "10 Signatures",
    ]
    assert len(set(page.ids)) == len(page.ids)
    assert [f"#{each}" for each in page.ids if each != "verdict"] == page.links
    assert page.tags.count("img") == 2


def test_nothing_is_loaded_and_nothing_runs(found):
    page = Page(found.html)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert not re.findall(r'(?:src|href)="(?!#|data:image/svg)', found.html) and "url(" not in found.html
    assert "@import" not in found.html and "default-src 'none'" in found.html


def test_its_numbers_are_those_of_the_verbs(found):
    model, tokenizer = build("llama"), words(template=True)
    effect = sf.compare_vectors(
        model, tokenizer, {"vector": V}, PROMPTS, [late], controls=1, max_new_tokens=6, resamples=199,
        suppress_tokens=WORDS, **QUIET,
    )  # fmt: skip
    told = found.findings
    assert told["effect"]["records"] == json.loads(effect.to_json())["records"]
    assert told["effect"]["pairs"] == json.loads(effect.to_json())["pairs"]
    costs = sf.protocols.side_effects(
        model, tokenizer, V, PASSAGES, prompts=PROMPTS, controls=1, max_new_tokens=6,
        generation={"suppress_tokens": WORDS}, **QUIET,
    )  # fmt: skip
    for part in ("figures", "baseline", "controls", "effects"):
        assert told["side_effects"][part] == json.loads(costs.to_json())[part]
    assert told["side_effects"]["figures"]["repetition"]["n"] == len(PROMPTS)
    profile = sf.discover.layer_profile(
        model, tokenizer, *DATA.values(), sites=sf.resid_post[:], position="mean", progress=False
    )
    assert told["quality"]["profile"] == {site.name: each.to_dict() for site, each in profile}
    states = [
        sf.activations(model, tokenizer, DATA[side], 1, "mean", progress=False)[sf.resid_post[1]] for side in DATA
    ]
    scores = [side @ V[1] for side in states]
    auc = float((scores[0][:, None] > scores[1][None]).double().mean())
    assert told["quality"]["auc"] == {"resid_post[1]": pytest.approx(auc)}
    mean = float(torch.cat(states).norm(dim=-1).mean())
    assert told["quality"]["relative_norm"] == {"resid_post[1]": pytest.approx(float(V[1].norm()) / mean, rel=1e-4)}


def test_fluency_of_several_draws_and_seeds_is_that_of_their_own_texts():
    few = [token for token in range(99) if token not in (3, 4, 5)]  # three words, so that texts repeat themselves
    found = reported(controls=2, seeds=(0, 3), do_sample=True, suppress_tokens=few, max_new_tokens=8).findings
    assert list(found["side_effects"]["controls"]) == ["random"] and found["side_effects"]["random_vectors"] == 2
    records = found["effect"]["records"]

    def repeated(condition, draw):
        by_prompt = {}
        for row in records:
            if (row["condition"], row["draw"]) == (condition, draw):
                by_prompt.setdefault(row["prompt"], []).append(row["text"])
        numbers = [[sf.metrics.distinct_n([text])[0] for text in texts] for texts in by_prompt.values()]
        return float(np.nanmean([np.nanmean(each) for each in numbers if not np.isnan(each).all()]))

    told = found["side_effects"]
    assert told["figures"]["distinct_n"]["mean"] == pytest.approx(repeated("vector", 0))
    assert told["baseline"]["distinct_n"]["mean"] == pytest.approx(repeated("unsteered", 0))
    draws = [repeated("random like vector", draw) for draw in (0, 1)]
    assert told["controls"]["random"]["distinct_n"]["mean"] == pytest.approx(np.mean(draws)) and draws[0] != draws[1]


def test_hashes_are_those_of_the_files_and_the_texts(tmp_path):
    path = sf.save(V, tmp_path / "happy-1.5.safetensors")
    with_file, without = reported(vector=path), usual()
    told = with_file.findings["vector"]
    assert told["file"] == "happy-1.5.safetensors" and told["name"] == "happy-1.5"
    assert told["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["sha256"] == sf.files.describe(path)["sha256"] == without.findings["vector"]["sha256"]
    assert told["versions"]["steerfn"] == sf.__version__ and without.findings["vector"]["file"] is None
    about = with_file.findings["about"]
    assert about["prompts_sha256"] == hashlib.sha256(json.dumps(PROMPTS).encode()).hexdigest()
    for each in (told["file_sha256"], told["sha256"], about["prompts_sha256"], with_file.findings["data"]["sha256"]):
        assert each in with_file.html
    assert str(tmp_path) not in with_file.html + with_file.to_json()


def test_another_model_of_the_same_sizes_has_other_weights():
    other = build("llama")
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight.mul_(1.01)
    first, second = usual().findings["model"], reported(other).findings["model"]
    assert first["fingerprint"] == second["fingerprint"] and first["weights_sample"] != second["weights_sample"]


def test_nothing_that_comes_from_a_file_a_user_or_a_model_is_markup(tmp_path, monkeypatch):
    v = V.with_metadata(note=HOSTILE, **{HOSTILE: [HOSTILE]}, model={"name": HOSTILE, "architecture": HOSTILE})
    path = sf.save(v, tmp_path / "<script>x.safetensors")
    data = sf.datasets.ContrastSet(
        HOSTILE, [*DATA["positive"], HOSTILE], DATA["negative"], description=HOSTILE, source=HOSTILE
    )

    def hostile(texts):
        return late(texts)

    hostile.__name__ = "<script>alert(3)</script>"  # of the user's own, but not markup either
    found = reported(
        vector=path,
        data=data,
        prompts=[*PROMPTS, f"{HOSTILE} a"],
        metrics=[hostile],
        title=HOSTILE,
        call=HOSTILE,
        examples=99,
        drawn=True,
    )
    assert html.escape("<script>alert(1)</script>") in found.html
    page, plain = Page(found.html), Page(reported(examples=99).html)
    assert set(page.tags) <= set(plain.tags) and page.tags.count("img") == plain.tags.count("img") == 2
    assert page.attributes <= plain.attributes
    assert "\x1b" not in found.html and "\u202e" not in found.html


def test_a_vector_says_little_or_too_much_of_itself():
    bare = reported(vector=sf.SteeringVector({sf.resid_post[1]: V[1]}))
    assert "The vector says nothing of how it was made." in bare.html
    assert any("does not say from how many texts" in each for each in bare.findings["limits"])
    full = reported(vector=V.with_metadata(**{f"key {i}": "x" * 5000 for i in range(60)}))
    assert "... and 24 more." in full.html and "(5000 characters)" in full.html and "x" * 401 not in full.html


def test_a_vector_of_another_model_warns_once_or_is_refused():
    other = V.with_metadata(model={"name": "another", "fingerprint": "0" * 16, "d_model": 32, "n_layers": 3})
    with pytest.warns(sf.SteerWarning, match="made from 'another'") as told:
        found = reported(vector=other)
    assert len(told) == 1
    assert found.findings["vector"]["match"] == "other" and "made from a model of another architecture" in found.html
    with pytest.raises(sf.ModelError, match="their architectures differ"):
        reported(vector=other, strict=True)


def test_whether_the_vector_is_of_these_weights():
    model, tuned = build("llama"), build("llama")
    with torch.no_grad():
        tuned.model.layers[2].mlp.down_proj.weight.mul_(1.01)
    made = sf.values.fingerprint(model, weights=True)
    same, architecture = (V.with_metadata(model=m) for m in (made, sf.values.fingerprint(model)))
    for v, other, match, text in (
        (same, model, "same", "made from these very weights"),
        (same, tuned, "other weights", "made from other weights of this architecture"),
        (architecture, model, "architecture", "but not from which weights"),
        (V, model, "unknown", "does not say from which model it was made"),
    ):
        found = reported(other, vector=v)
        assert found.findings["vector"]["match"] == match and text in found.html
        assert (made["weights"] in found.html) == (v is same or other is model)
        warned = f'<p class="warning">{html.escape(MATCHES[match])}' in found.html
        assert warned == (match in ("other weights", "unknown"))


def test_layers_from_the_end_many_sites_and_head_sites():
    found = reported(vector=vector(sf.resid_post[-1], sf.resid_post[-2]))
    assert found.findings["vector"]["sites"] == ["resid_post[2]", "resid_post[1]"]
    assert "layer 1 and layer 2, where the vector acts" in found.html
    heads = reported(vector=vector(sf.head_out[1, 2], width=8), drawn=True)
    assert "head_out[1, 2]" in heads.findings["quality"]["profile"]
    assert heads.findings["quality"]["auc"].keys() == {"head_out[1, 2]"}


def test_prompts_of_the_data_warn_and_are_told():
    prompts = [*PROMPTS, "O  p", "v w"]  # a text of it, and the beginning of one, case and blanks aside
    with pytest.warns(sf.SteerWarning, match="2 of 12 prompts are also in the data, first 'O p'"):
        found = reported(prompts=prompts)
    assert found.findings["overlap"] == ["O p", "v w"]
    assert any("Of the 12 prompts 2" in each for each in found.findings["limits"])
    talk = [{"role": "user", "content": "g h"}, {"role": "assistant", "content": "i"}]
    data = {"positive": [*DATA["positive"], talk], "negative": DATA["negative"]}
    with pytest.warns(sf.SteerWarning, match="1 of 10 prompts are also in the data, first 'g h'"):
        reported(data=data, vector=V.with_metadata(chat=None))


def test_one_text_a_side_gives_a_report_without_a_profile():
    found = reported(data={"positive": ["a b"], "negative": ["o p"]}, drawn=True)
    reason = "Cross-validation tells nothing here: one text or group on a side leaves nothing to hold out."
    assert f"{reason} So there is no quality by layer." in found.html
    assert found.html.count("<img") == 1 and found.findings["quality"]["chance"] is None


def test_an_auc_has_its_interval_and_the_best_layer_what_chance_reaches(found):
    told = found.findings["quality"]
    best = max(told["profile"].values(), key=lambda each: each["auc"])
    chance = told["chance"]
    for text in (
        f"{best['auc']:.3f} ({best['interval'][0]:.2f}\u00a0to\u00a0{best['interval'][1]:.2f})",
        f"in {100 * best['pair_accuracy']:.0f} % of the pairs the positive text scores higher",
        f"the highest AUC is {chance['median']:.2f} in the middle case, and {chance['high']:.2f} or more one time in",
        f"{best['auc']:.2f} is reached with p = {chance['p']:.3f}",
    ):
        assert text in found.html, text
    assert chance["p"] > 0.05  # of seven random texts a side: no layer is told from noise, and that is not overlooked
    assert '<p class="warning">The best of 3 sites owes something to chance' in found.html
    assert any(
        "that the data's two sides are told apart in this model is not shown" in each
        for each in found.findings["limits"]
    )
    [(name, (low, high))] = told["auc_interval"].items()
    assert name == "resid_post[1]" and low < told["auc"][name] < high


def test_groups_are_the_units_of_a_report(found):
    groups = {
        "data": [0, 0, 1, 1, 2, 3, 4], "prompts": [i // 2 for i in range(len(PROMPTS))], "passages": [0, 0, 1],
        "questions": [0, 0, 1, 1],
    }  # fmt: skip
    grouped = reported(groups=groups, questions=QUESTIONS)
    told = grouped.findings
    assert told["about"]["groups"] == {"prompts": 5, "passages": 2, "data": 5, "questions": 2}
    assert {pair["n"] for pair in told["effect"]["pairs"]} == {5}
    assert [told["side_effects"]["figures"][name]["n"] for name in ("kl", "accuracy", "repetition")] == [2, 2, 5]
    assert told["verdict"]["reasons"][0].startswith("Tested on 5 groups of prompts with 1 metric")
    assert any("There are only 5 groups of prompts." in each for each in told["limits"])
    assert "with groups as the units" in grouped.html and "with pairs as the units" in found.html
    profile = sf.discover.layer_profile(
        build("llama"), words(template=True), *DATA.values(), sites=sf.resid_post[:], position="mean", progress=False,
        groups=groups["data"],
    )  # fmt: skip
    assert told["quality"]["profile"] == {site.name: each.to_dict() for site, each in profile}
    by_list = reported(groups=groups["prompts"]).findings
    assert by_list["effect"]["pairs"] == told["effect"]["pairs"] and by_list["about"]["groups"] == {"prompts": 5}
    some = reported(groups=groups, limit=4).findings  # labels go with what is drawn
    assert some["about"]["groups"]["data"] <= 4 and some["effect"]["pairs"][0]["n"] <= 4
    for bad, message in (
        ({"prompt": [1]}, "labels of 'prompt'; it may have them of data, prompts, passages, questions"),
        ([0, 1], "2 labels for 10 prompts .those of the data are groups={'data'"),
        ({"data": [0, 1]}, "2 labels for 7 pairs"),
    ):
        with pytest.raises(sf.DataError, match=message):
            reported(groups=bad)


def test_a_model_that_changed_is_told():
    model = build("llama")

    def meddling(texts):
        with torch.no_grad():
            model.model.embed_tokens.weight.add_(1.0)
        return late(texts)

    found = reported(model, metrics=[meddling])
    assert found.findings["unchanged"] is False and "and they differ" in found.html
    assert usual().findings["unchanged"] is True


def test_the_model_and_tokenizer_stay_as_they_were(tiny):
    tokenizer = words(template=True)
    before = tokenizer.padding_side, tokenizer.chat_template, len(tokenizer)
    with unchanged(tiny):
        sf.report(tiny, tokenizer, V, DATA, metrics=[late], **FAST | QUIET)
    assert (tokenizer.padding_side, tokenizer.chat_template, len(tokenizer)) == before


def test_data_is_a_set_a_file_or_two_lists(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(list(map(list, zip(*DATA.values(), strict=True)))))
    by_file = reported(data=path).findings
    by_set = reported(data=sf.datasets.from_file(path)).findings
    assert by_file["quality"] == by_set["quality"] == usual().findings["quality"]
    assert by_file["data"]["paired"] and by_file["data"]["name"] == "pairs"
    with pytest.raises(sf.DataError, match="data is a ContrastSet .* not 3 of type int"):
        reported(data=3)


def test_it_is_written_whole_and_as_json(found, tmp_path):
    assert found.save(tmp_path / "r.html").read_text() == found.html
    document = json.loads(found.to_json(tmp_path / "r.json"))
    assert document == json.loads((tmp_path / "r.json").read_text()) == json.loads(found.to_json())
    assert set(document) == {
        "title", "written", "verdict", "vector", "metadata", "model", "data", "quality", "effect", "side_effects",
        "unchanged", "overlap", "limits", "about",
    }  # fmt: skip
    with pytest.raises(sf.FileError, match="The report cannot be written to .*; create it first"):
        found.save(tmp_path / "nowhere" / "r.html")


def test_it_prints_its_verdict_and_shows_itself_in_a_notebook(found):
    verdict = found.findings["verdict"]
    lines = str(found).splitlines()
    assert lines[0] == "Report on the steering vector “vector”" and lines[2] == verdict["headline"]
    assert repr(found) == f"Report({verdict['headline']!r})"
    shown = found._repr_html_()
    frame = re.fullmatch(r'<iframe sandbox srcdoc="([^"]*)" title="Report" style="[^"]*"></iframe>', shown)
    assert frame and html.unescape(frame[1]) == found.html


def test_the_call_can_be_read_off_it(found, tmp_path):
    call = found.findings["about"]["call"]
    assert call == (
        "sf.report(\n    model,\n    tokenizer,\n    vector,\n    data,\n"
        f"    prompts={PROMPTS!r},\n    metrics=metrics,\n    controls=1,\n    passages={PASSAGES!r},\n"
        "    max_new_tokens=6,\n    chat=False,\n    resamples=199,\n    suppress_tokens=suppress_tokens,\n)"
    )
    path = sf.save(V, tmp_path / "happy.safetensors")
    other = reported(vector=str(path), do_sample=True, top_k=5).findings["about"]["call"]
    assert "    'happy.safetensors',\n" in other and "    do_sample=True,\n    top_k=5,\n" in other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": -1}, "`examples` must be a non-negative integer, got -1."),
        ({"limit": 0}, "`limit` must be a positive integer, got 0; None takes all texts."),
        ({"seed": "x"}, "`seed` must be a non-negative integer, got 'x'"),
        ({"controls": 0}, "`controls` must be a positive integer, got 0"),
        ({"metrics": ["lenght"]}, "did you mean 'length'?"),
        ({"vector": 3}, "report takes a SteeringVector, not a int"),
        ({"prompts": []}, "prompts is empty; pass at least one text."),
        ({"passages": [""]}, r"passages\[0\] is empty"),
        ({"seeds": (0, 1)}, "would be copies"),
        ({"alpha": "x"}, "`alpha` must be a finite number"),
        ({"level": 95}, "`level` must be a finite number > 0 and < 1"),
        ({"resamples": 10}, "`resamples` must be an integer >= 99"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_runs(options, message):
    model = build("llama")
    model.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(sf.SteerError, match=message):
        reported(model, **options)


def told(*keys, **options):
    """A part of the findings."""
    found = (reported(**options) if options else usual()).findings
    for key in keys:
        found = found[key]
    return found


QUESTIONS = [{"prompt": f"{a} a", "correct": "b", "incorrect": "c"} for a in "defg"]
SAMPLE = {"do_sample": True}
OPTIONS = {
    "prompts": (lambda: told("effect"), lambda: told("effect", prompts=PROMPTS[1:])),
    "metrics": (lambda: told("effect", "means"), lambda: told("effect", "means", metrics=["length"])),
    "alpha": (lambda: told("effect"), lambda: told("effect", alpha=2.0)),
    "scope": (lambda: told("effect"), lambda: told("effect", scope=sf.prompt)),
    "make": (lambda: told("effect"), lambda: told("effect", make=sf.clamp)),
    "controls": (lambda: told("effect"), lambda: told("effect", controls=2)),
    "passages": (lambda: told("side_effects"), lambda: told("side_effects", passages=PASSAGES[1:])),
    "questions": (lambda: told("side_effects"), lambda: told("side_effects", questions=QUESTIONS)),
    "position": (lambda: told("quality"), lambda: told("quality", position="last")),
    "examples": (lambda: usual().html.count("<tr>"), lambda: reported(examples=2).html.count("<tr>")),
    "limit": (lambda: told("quality"), lambda: told("quality", limit=4)),
    "groups": (lambda: told("effect", "pairs"), lambda: told("effect", "pairs", groups=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])),
    "seeds": (lambda: told("effect", **SAMPLE), lambda: told("effect", seeds=(4,), **SAMPLE)),
    "max_new_tokens": (lambda: told("effect"), lambda: told("effect", max_new_tokens=3)),
    "chat": (lambda: told("effect"), lambda: told("effect", chat=True)),
    "level": (lambda: told("effect"), lambda: told("effect", level=0.9)),
    "resamples": (lambda: told("effect", "pairs"), lambda: told("effect", "pairs", resamples=299)),
    "seed": (lambda: told("effect"), lambda: told("effect", seed=1)),
    "title": (lambda: told("title"), lambda: told("title", title="Mine")),
    "call": (lambda: told("about", "call"), lambda: told("about", "call", call="mine")),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_pitfall_26_an_option_of_report_changes_the_result(option, monkeypatch):
    usual()
    if option != "examples":  # the others are seen in the findings
        monkeypatch.setattr("steerfn.reporting._report.document", lambda _: "")
    assert_changes(*OPTIONS[option])


def test_pitfall_26_no_option_of_report_is_left_out():
    # strict has a test of its own; how many rows run at once changes no number.
    assert optional(function) - set(OPTIONS) == {"progress", "batch_size", "strict"}


def test_batches_change_nothing_but_time():
    one, all_ = reported(batch_size=3).findings, usual().findings
    assert one["effect"]["records"] == all_["effect"]["records"]


def test_limit_takes_fewer_of_everything_and_keeps_pairs(tmp_path):
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(list(map(list, zip(*DATA.values(), strict=True)))))
    found = reported(data=pairs, limit=2).findings
    assert (found["data"]["positive"], found["data"]["negative"], found["data"]["paired"]) == (2, 2, True)
    assert len({row["prompt"] for row in found["effect"]["records"]}) == 2 and found["about"]["passages"] == 2
    assert {row["prompt"] for row in found["effect"]["records"]} < set(PROMPTS)


def test_a_planted_effect_is_shown_and_alpha_zero_is_not():
    """A direction that the metric reads off the logits directly: the last block's output towards a token."""
    model = build("llama")
    token = words().convert_tokens_to_ids("z")
    v = sf.SteeringVector({sf.resid_post[2]: model.lm_head.weight[token].detach().clone()})

    def zs(texts):  # what random vectors do to this is next to nothing, and to `late` anything
        return [float(np.mean([word == "z" for word in text.split()] or [0])) for text in texts]

    options = {"vector": v, "alpha": 2000.0, "prompts": [f"{a} {b}" for a in "abcde" for b in "fghi"], "metrics": [zs]}
    strong = reported(model, **options, controls=5)
    assert strong.findings["verdict"]["level"] == "shown" and "raises zs" in strong.findings["verdict"]["headline"]
    assert ", at a cost" in strong.findings["verdict"]["headline"]
    lone = reported(model, **options)
    assert lone.findings["verdict"]["level"] == "like random" and "run controls=5 or more" in lone.html
    nothing = reported(model, vector=v, alpha=0.0)
    assert nothing.findings["verdict"]["headline"] == "No effect could be shown."
    assert "An effect was shown" not in nothing.html
