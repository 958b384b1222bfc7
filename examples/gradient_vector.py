"""Find a direction by gradient: which way at block 14 makes " Paris" more likely, and what it does elsewhere.

python examples/gradient_vector.py
"""

import torch

import steerfn as sf

model, tokenizer = sf.demo_model()
f = sf.functional(model)
ids = tokenizer("My favourite city in the world is", return_tensors="pt").input_ids.to(model.device)
paris = tokenizer(" Paris").input_ids[0]
start = sf.SteeringVector({sf.resid_post[14]: torch.zeros(model.config.hidden_size)})


def log_probability(vector: sf.SteeringVector) -> torch.Tensor:
    return f(sf.add(vector), ids, use_cache=False).logits[0, -1].log_softmax(-1)[paris]


direction = torch.func.grad(log_probability)(start).unit()
alphas = torch.tensor([0.0, 2.0, 4.0, 8.0])
with torch.no_grad():
    chances = torch.func.vmap(lambda a: log_probability(a * direction))(alphas).exp()
for alpha, chance in zip(alphas, chances, strict=True):
    print(f"alpha {alpha:4.1f}: p(' Paris') = {chance:.4f}")
