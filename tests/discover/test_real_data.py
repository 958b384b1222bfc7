"""On the real model and real data: the same vectors as a plain loop over transformers, text by text."""

from pathlib import Path

import pytest
import torch

import steerfn as sf

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout"),
]
LAYERS = [3, 14]


def sides(name, count):
    """The first texts of a real set, positive and negative."""
    path = DATA / name
    if name == "sentiment":
        import zipfile

        with zipfile.ZipFile(DATA / "sentiment" / "sentence_polarity.zip") as archive:
            files = {n.rsplit(".", 1)[-1]: n for n in archive.namelist() if "rt-polarity." in n}
            lines = [archive.read(files[side]).decode("latin-1").splitlines()[:count] for side in ("pos", "neg")]
        return lines[0], lines[1]
    if name == "emotions":
        folder = DATA / "repe" / "emotions"
        found = sf.datasets.from_file(folder / "happiness.json", negative=folder / "sadness.json")
    elif name == "refusal":
        import json

        harmful, plain = (
            json.loads((DATA / "refusal" / "harmful_train.json").read_text(encoding="utf8")),
            (DATA / "instructions" / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf8").splitlines(),
        )
        return [i["instruction"] for i in harmful[:count]], [json.loads(i)["instruction"] for i in plain[: count + 1]]
    else:
        found = sf.datasets.from_file(path)
    return list(found.positive[:count]), list(found.negative[:count])


def loop(model, tokenizer, texts, position, chat):
    """The mean over texts of the hidden state, one text at a time, with what transformers returns."""
    sums = dict.fromkeys(LAYERS, 0)
    for text in texts:
        if chat:
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)
        with torch.no_grad():
            hidden = model(**ids, output_hidden_states=True).hidden_states
        for layer in LAYERS:
            state = hidden[layer + 1][0].double()
            read = {
                "mean": state[1:].mean(0),
                "mean_all": state.mean(0),
                "last": state[-1],
            }  # the first token is a sink
            sums[layer] = sums[layer] + read[position]
    return {layer: total / len(texts) for layer, total in sums.items()}


# At block 3 some tokens beside the first are sinks too, and the warning says so.
@pytest.mark.filterwarnings("ignore:The direction at .* lies along the state")
@pytest.mark.parametrize(
    ("name", "position", "chat"),
    [
        ("sentiment", "last", False),
        ("sentiment", "mean", False),
        ("sentiment", "mean_all", False),
        ("emotions", "last", False),
        ("repe/facts_true_false.csv", "last", False),
        ("caa/generate/corrigible-neutral-HHH.json", "last", False),
        ("refusal", "last", True),
    ],
)
def test_the_same_vector_as_a_plain_loop(demo, name, position, chat):
    model, tokenizer = demo
    positive, negative = sides(name, 6)
    v = sf.mean_difference(model, tokenizer, positive, negative, LAYERS, position=position, chat=chat, progress=False)
    high, low = (loop(model, tokenizer, texts, position, chat) for texts in (positive, negative))
    for layer in LAYERS:
        expected = high[layer] - low[layer]
        assert float((v[layer].double() - expected).norm() / expected.norm()) < 1e-5


def test_pitfall_23_and_38_chat_texts_have_one_beginning_and_end_where_the_answer_begins(demo):
    _, tokenizer = demo
    positive, negative = sides("refusal", 3)
    assert set(sf.run.token_read(tokenizer, [*positive, *negative], chat=True)) == {"\n"}
    [everything] = sf.run.token_read(tokenizer, positive[:1], "mean", chat=True)
    assert everything.endswith(f"{positive[0]}<|im_end|>\n<|im_start|>assistant\n")
    assert everything.count("<|im_start|>system") == 1
