"""Steer only where a condition holds: token by token, or decided once on the prompt (CAST).

python examples/conditional.py
"""

import steerfn as sf

model, tokenizer = sf.demo_model()


def show(prompts, variants):
    for name, steering in variants.items():
        texts = sf.generate(model, tokenizer, prompts, steering, max_new_tokens=24)
        for prompt, text in zip(prompts, texts, strict=True):
            print(f"[{name}] {prompt}\n  {text}\n")


# Decide token by token: calm a model down where it is already excited.
calm = ["We sat quietly and waited.", "The lake was still at dawn.", "She spoke slowly and softly."]
wild = ["We screamed and ran for it!", "The crowd went wild at once!", "She shouted loud and fast!"]
excitement = sf.mean_difference(model, tokenizer, wild, calm, sites=[10, 14], position="mean")
gate = sf.projection_above(excitement.select(10), 0.0)  # read at block 10 ...
calming = sf.when(gate, sf.add(excitement.select(14), -2.0))  # ... acts at block 14
show(
    ["Describe a roller coaster ride!", "Describe the last minute of a football final!"],
    {"unsteered": None, "calmed": calming},
)

# Decide once for the whole answer: cheer up those who sound sad, most at first; every other answer stays as it is.
texts = sf.datasets.load("sentiment")
sad = sf.discover.find_condition(model, tokenizer, texts.negative, texts.positive, sites=range(10, 16, 2))
print(sad, "\n")
happy = sf.mean_difference(model, tokenizer, texts.positive, texts.negative, sites=18)
cheering = sf.when(sad.on_prompt, sf.scheduled(sf.add(happy, 3.0), sf.schedules.linear_decay(40)))
prompts = ["I feel so lonely and lost tonight.", "I got the job and I am thrilled!"]
show(prompts, {"unsteered": None, "cheered": cheering})
