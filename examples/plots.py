"""Every plot of the library on the demo model, as PNG and SVG.

python examples/plots.py [folder]
"""

import sys
from pathlib import Path

import steerfn as sf

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "plots")
folder.mkdir(parents=True, exist_ok=True)
model, tokenizer = sf.demo_model()
texts = sf.datasets.load("sentiment")
train, test = texts.split(0.5)
profile = sf.discover.layer_profile(model, tokenizer, train.positive, train.negative)
happy = sf.mean_difference(model, tokenizer, train, sites=18, position="mean")
steering = sf.add(happy, 2.0)


def save(name, figure):
    for kind in ("png", "svg"):
        figure.savefig(folder / f"{name}.{kind}")
    print(folder / f"{name}.png")


save("layers", sf.plot.layers(profile))
save("token_probabilities", sf.plot.token_probabilities(model, tokenizer, "I feel so", steering, chat=False))
save("top_k_changes", sf.plot.top_k_changes(model, tokenizer, "How was your day?", steering, steps=10))
review = "The food was wonderful and our waiter was kind.\nThe room was cold, dirty and far too loud to sleep in."
save("tokens", sf.plot.tokens(model, tokenizer, review, happy))
save("separation", sf.plot.separation(model, tokenizer, test.positive, test.negative, happy))

# Which layer, which strength: the log-odds of a good against a bad word.
prompts = ["The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "The service was"]
words = {"continuations": [" wonderful", " terrible"], "chat": False, "scope": sf.generated}
several = profile.vectors.select(sf.resid_post[:])
table = sf.sweep(model, tokenizer, prompts, several, [-4, -2, 0, 2, 4], sites=range(0, 30, 2), **words)
save("heat_map", sf.plot.heat_map(table, "propensity"))
table = sf.sweep(model, tokenizer, prompts, several, [-4, -2, 0, 2, 4], sites=[6, 14, 22], **words)
save("sweep", sf.plot.sweep(table, "share"))

# Is it the vector, or would any push of that size do? Away from happy, it lowers sentiment; random vectors do not.
things = "your day,rain,Mondays,the sea,work,my neighbour,winter,music,the town,school,dinner,my garden".split(",")
prompts = [f"Tell me about {thing}." for thing in things]
result = sf.compare_vectors(model, tokenizer, {"happy": happy}, prompts, ["sentiment"], alpha=-3.0, max_new_tokens=16)
print(result.summary())
save("comparison", sf.plot.comparison(result))
outcome = sf.protocols.side_effects(model, tokenizer, happy, list(test.positive[:8]), alpha=3.0)
save("outcome", sf.plot.outcome(outcome))
