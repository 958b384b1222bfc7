"""The real engines, each in an environment of its own, read what steerfn writes and compute what it computes.

pytest -m engine tests/engines
"""

import json
import os
import subprocess

import pytest
import torch
from environments import python_of
from served import served
from steering import vector

import steerfn as sf
from steerfn import serving

pytestmark = pytest.mark.engine
SITES = (sf.resid_post[6], sf.resid_post[13])
OPENINGS = ("The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "This book is")
ANSWERS = (" wonderful", " terrible", " of no interest to anyone")
TASK = """
task: steerfn_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: "{{{{answers}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def log_likelihoods(model, tokenizer, op):
    """The log-probability of every answer after every opening, by one plain pass each."""
    run, found = sf.functional(model), []
    for opening in OPENINGS:
        for answer in ANSWERS:
            ids = tokenizer(opening + answer, return_tensors="pt").input_ids
            start = tokenizer(opening, return_tensors="pt").input_ids.shape[1]
            with torch.no_grad():
                scores = run(op, ids, use_cache=False).logits[0].log_softmax(-1)
            found.append(float(scores[start - 1 : -1].gather(1, ids[0, start:, None]).sum()))
    return torch.tensor(found)


def ask_lm_eval(folder, kind, arguments, *more):
    """The log-probability of every answer after every opening, as lm-evaluation-harness has it of a model."""
    rows = [json.dumps({"question": opening, "answers": list(ANSWERS)}) for opening in OPENINGS]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "local.yaml").write_text(TASK.format(file=folder / "rows.jsonl"))
    command = [
        str(python_of("lm_eval")), "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments, "--tasks",
        "steerfn_local", "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples", *more,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, cwd=folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    [file] = (folder / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return torch.tensor([float(answer[0]) for sample in samples for answer in sample["filtered_resps"]])


@pytest.mark.parametrize("alpha", [2.0, 0.0])
def test_lm_eval_gives_the_log_likelihoods_of_our_own_steering(demo, tmp_path, alpha):
    model, tokenizer = demo
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    v = vector(*SITES, width=576)
    sf.to_lm_eval(v, tmp_path / "v.pt", alpha=alpha, model=model)
    arguments = f"pretrained={tmp_path / 'model'},steer_path={tmp_path / 'v.pt'},dtype=float32"
    theirs = ask_lm_eval(tmp_path, "steered", arguments, "--batch_size", "4", "--device", "cpu")
    plain, steered = (log_likelihoods(model, tokenizer, op) for op in (sf.identity, sf.add(v, alpha)))
    torch.testing.assert_close(theirs, steered, rtol=1e-4, atol=1e-3)
    if alpha:
        assert (theirs - plain).abs().max() > 1
    else:
        torch.testing.assert_close(theirs, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("tokenized", [True, False])
def test_lm_eval_asks_a_server_that_steers(demo, tmp_path, tokenized):
    """`local-completions` sends `echo` with `logprobs`, of token ids or texts, and reads the steered model's."""
    model, tokenizer = demo
    tokenizer.save_pretrained(tmp_path / "model")
    v = vector(*SITES, width=576)
    (tmp_path / "vectors").mkdir()
    sf.save(v, tmp_path / "vectors" / "v.safetensors")
    default = {"vector": "v", "alpha": 2.0}
    with served(serving.app(model, tokenizer, tmp_path / "vectors", default_steering=default)) as address:
        arguments = (
            f"model={sf.values.fingerprint(model)['name']},base_url={address}/v1/completions,num_concurrent=1,"
            f"tokenizer={tmp_path / 'model'},tokenizer_backend=huggingface,tokenized_requests={tokenized}"
        )
        theirs = ask_lm_eval(tmp_path, "local-completions", arguments, "--batch_size", "4" if tokenized else "1")
    torch.testing.assert_close(theirs, log_likelihoods(model, tokenizer, sf.add(v, 2.0)), rtol=1e-4, atol=1e-3)


def test_repeng_reads_our_file_and_we_read_its(tmp_path):
    v = vector(*SITES, width=576)
    sf.save(v, tmp_path / "ours.gguf", alpha=1.5)
    program = """
import json, sys
from repeng import ControlVector
found = ControlVector.import_gguf(sys.argv[1])
print(json.dumps({int(layer): direction.tolist() for layer, direction in found.directions.items()}))
ControlVector(found.model_type, found.directions).export_gguf(sys.argv[2])
"""
    command = [str(python_of("repeng")), "-c", program, str(tmp_path / "ours.gguf"), str(tmp_path / "theirs.gguf")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = {int(layer): torch.tensor(each) for layer, each in json.loads(ran.stdout).items()}
    assert set(found) == {6, 13}
    for site in SITES:
        torch.testing.assert_close(found[site.block], 1.5 * v[site])
    back = sf.load(tmp_path / "theirs.gguf")
    assert back.sites == SITES
    for site in SITES:
        torch.testing.assert_close(back[site], 1.5 * v[site])
