"""Steer only where the state asks for it: calm a model down where it is already excited.

python examples/conditional.py
"""

import steerfn as sf

model, tokenizer = sf.demo_model()
calm = ["We sat quietly and waited.", "The lake was still at dawn.", "She spoke slowly and softly."]
wild = ["We screamed and ran for it!", "The crowd went wild at once!", "She shouted loud and fast!"]
excitement = sf.mean_difference(model, tokenizer, wild, calm, sites=[10, 14], position="mean")

gate = sf.projection_above(excitement.select(10), 0.0)  # read at block 10 ...
op = sf.when(gate, sf.add(excitement.select(14), -1.0))  # ... acts at block 14
prompts = ["Tell me about a football final.", "Tell me about a library."]
for name, steering in {"unsteered": None, "calmed": op}.items():
    for prompt, text in zip(prompts, sf.generate(model, tokenizer, prompts, steering, max_new_tokens=24), strict=True):
        print(f"[{name}] {prompt}\n  {text}\n")
