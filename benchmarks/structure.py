"""What it costs a token to keep an answer to a grammar, to tell log-probabilities, and to leave tool calls unsteered.

    python benchmarks/structure.py [--rounds 5] [--tokens 48]

SmolLM2-135M-Instruct, rows of one batch as the server runs them, `--tokens` tokens each, steered at one block. Every way
is run beside the plain one in each round, in an order that turns; medians of ratios. Below: the time that the grammar
alone takes, on one core, at each place of an answer.
"""

import argparse
import statistics
import time

import torch

import steerfn as sf
from steerfn.run import (
    BatchJob,
    RowSampling,
    choice_grammar,
    compile_structure,
    decoding_of,
    encode,
    json_schema_grammar,
    regex_grammar,
    run_batch,
)

PROMPT = "Describe a person."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "likes"],
}  # fmt: skip
ENDLESS = {"type": "array", "items": {"type": "string", "minLength": 4}, "minItems": 100}
"""Long enough for every run, so that all ways make as many tokens."""


def ways(model, tokenizer, decoding):
    """Operator and keywords of the rows of each way."""
    generator = torch.Generator().manual_seed(0)
    v = sf.SteeringVector({sf.resid_post[14]: torch.randn(model.config.hidden_size, generator=generator)})
    plain, scope = sf.add(v, 0.5), sf.outside_tool_calls(tokenizer, marks=("<tool_call>", "</tool_call>"))
    structure = compile_structure(tokenizer, json_schema_grammar(ENDLESS), decoding.ends)
    return {
        "plain": (plain, {}),
        "JSON schema": (plain, {"structure": structure}),
        "20 log-probabilities": (plain, {"top_logprobs": 20}),
        "outside tool calls": (sf.at(scope, plain), {}),
    }


def run(model, tokenizer, decoding, op, more, rows, tokens):
    """Seconds a token of one batch."""
    ids = encode(tokenizer, [PROMPT], None)[0]
    # Nobody ends early: the end of a text is never the token that is chosen.
    sampling = RowSampling(logit_bias=dict.fromkeys(decoding.ends, -100.0))
    jobs = [BatchJob(ids, op, tokens, sampling, (), lambda _: None, **more) for _ in range(rows)]
    began = time.perf_counter()
    run_batch(model, tokenizer, jobs, decoding)
    seconds = time.perf_counter() - began
    assert all(len(job.tokens) == tokens for job in jobs), [job.reason for job in jobs]
    return seconds / tokens


def compare(model, tokenizer, decoding, rows, tokens, rounds):
    every = ways(model, tokenizer, decoding)
    seconds = {name: [] for name in every}
    run(model, tokenizer, decoding, *every["plain"], rows, 4)
    for turn in range(rounds):
        names = [*every][turn % len(every) :] + [*every][: turn % len(every)]
        for name in names:
            seconds[name].append(run(model, tokenizer, decoding, *every[name], rows, tokens))
    print(f"\n{rows} rows of {tokens} tokens: plain {1e3 * statistics.median(seconds['plain']):.1f} ms a token")
    for name in list(every)[1:]:
        ratios = [mine / plain for mine, plain in zip(seconds[name], seconds["plain"], strict=True)]
        print(
            f"  {name:<22}{statistics.median(ratios):6.3f} x   ({min(ratios):.3f} - {max(ratios):.3f}, {rounds} rounds)"
        )


def masks(tokenizer, decoding):
    """The grammar alone: to compile it, and the mask of the next token at each place of an answer."""
    texts = {
        "JSON schema": (
            json_schema_grammar(PERSON),
            '{"name": "Ada Lovelace", "age": 36, "likes": ["tea", "numbers"]}',
        ),
        "regex": (regex_grammar(r"[0-9]{3}-[0-9]{4}-[a-z]+"), "123-4567-abcdefgh"),
        "choice": (choice_grammar(["yes, certainly", "no, never"]), "yes, certainly"),
    }
    print("\nthe grammar alone      to compile    a token, median and worst")
    for name, (grammar, text) in texts.items():
        began = time.perf_counter()
        structure = compile_structure(tokenizer, grammar, decoding.ends)
        compiled, matcher, times = time.perf_counter() - began, structure.start(), []
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            began = time.perf_counter()
            matcher.allowed_tokens(len(tokenizer))
            matcher.consume(token)
            times.append(time.perf_counter() - began)
        middle, worst = 1e6 * statistics.median(times), 1e6 * max(times)
        print(f"  {name:<20}{1e3 * compiled:8.2f} ms    {middle:8.0f} us {worst:8.0f} us")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=48)
    options = arguments.parse_args()
    model, tokenizer = sf.demo_model()
    decoding = decoding_of("benchmark", model, tokenizer, {})
    began = time.perf_counter()
    compile_structure(tokenizer, regex_grammar("a"), decoding.ends)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"the vocabulary of {len(tokenizer)} tokens, read once: {time.perf_counter() - began:.2f} s")
    masks(tokenizer, decoding)
    for rows in (1, 8):
        compare(model, tokenizer, decoding, rows, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
