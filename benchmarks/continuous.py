"""Batches that run to their end against texts that join and leave a running one, as clients of the server see them.

    python benchmarks/continuous.py [--rounds 3] [--clients 1 8 32]

SmolLM2-135M-Instruct in the server's worker, without HTTP. Each client sends its next request when the last one has
ended; prompts of 8 to 150 words, 8 to 64 tokens, every request steered by a vector and strength of its own. The two ways
answer the same requests in each round, in an order that turns, and must give the same tokens. Medians over the rounds.
"""

import argparse
import random
import statistics
import threading
import time

import torch

import steerfn as sf
from steerfn.run import BatchJob, ContinuousBatch, RowSampling, decoding_of, encode
from steerfn.serving import Limits
from steerfn.serving._worker import Worker

EACH = 4
"""Requests of each client."""
WORDS = "the quick brown fox jumps over a lazy dog while we think about rivers and mountains".split()


def requests(model, tokenizer, clients):
    """The requests of each client: token ids, operator, tokens."""
    r, generator = random.Random(0), torch.Generator().manual_seed(0)
    vectors = [
        sf.SteeringVector({sf.resid_post[14]: torch.randn(model.config.hidden_size, generator=generator)})
        for _ in range(8)
    ]

    def one():
        ids = encode(tokenizer, [" ".join(r.choices(WORDS, k=r.choice((8, 20, 60, 150))))], None)[0]
        return ids, sf.add(r.choice(vectors), r.uniform(-1, 1)), r.choice((8, 16, 32, 64))

    return [[one() for _ in range(EACH)] for _ in range(clients)]


def run(worker, asked, ends):
    """Seconds of it all, seconds to the first token and to the end of each request, and the tokens."""
    first, last, tokens = [], [], {}
    # Nobody ends early: the end of a text is never the token that is chosen.
    sampling = RowSampling(logit_bias=dict.fromkeys(ends, -100.0))

    def client(number):
        for i, (ids, op, most) in enumerate(asked[number]):
            done, began, heard = threading.Event(), time.perf_counter(), []

            def on_text(piece, done=done, began=began, heard=heard):
                if piece is None:
                    last.append(time.perf_counter() - began)
                    done.set()
                elif not heard:
                    heard.append(piece)
                    first.append(time.perf_counter() - began)

            job = BatchJob(list(ids), op, most, sampling, (), on_text)
            worker.submit([job])
            done.wait()
            tokens[number, i] = job.tokens

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(asked))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, first, last, tokens


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    model, tokenizer = sf.demo_model()
    model.to(options.device)
    decoding, limits = decoding_of("benchmark", model, tokenizer, {}), Limits(max_rows=32)
    workers = {
        "batches": Worker(model, tokenizer, limits, decoding),
        "continuous": Worker(
            model,
            tokenizer,
            limits,
            decoding,
            continuous=ContinuousBatch(model, tokenizer, decoding, limits.max_rows, limits.cache_tokens),
        ),
    }
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print("clients               tokens/s    first token, median and worst    end of a text, median")
    for clients in options.clients:
        asked = requests(model, tokenizer, clients)
        results = {name: [] for name in workers}
        for turn in range(options.rounds):
            for name in sorted(workers, reverse=bool(turn % 2)):
                results[name].append(run(workers[name], asked, decoding.ends))
        one, other = (results[name][0][3] for name in workers)
        for name, every in results.items():
            speed = statistics.median(sum(map(len, tokens.values())) / seconds for seconds, _, _, tokens in every)
            first = statistics.median(statistics.median(each[1]) for each in every)
            worst = statistics.median(max(each[1]) for each in every)
            last = statistics.median(statistics.median(each[2]) for each in every)
            print(f"{clients:>7} {name:<12}{speed:>10.1f}{first:>14.2f} s{worst:>12.2f} s{last:>22.2f} s")
        print(f"        the same tokens: {sum(one[key] == other[key] for key in one)} of {len(one)} requests")


if __name__ == "__main__":
    main()
