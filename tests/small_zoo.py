"""A zoo for a tiny model: vectors whose reports show an effect, show none, and are missing."""

from steering import vector

import steerfn as sf
from steerfn.values import fingerprint

REPORTS = {
    "calm": {"alpha": 1.5, "verdict": "shown", "headline": "An effect was shown: it calms."},
    "rude": {"alpha": -2.5, "verdict": "not shown", "headline": "No effect could be shown."},
    "plain": None,
}


def fill(folder, model):
    """Write the zoo, and the vector of another model, which is not offered."""
    made = fingerprint(model)
    for seed, (name, evidence) in enumerate(REPORTS.items()):
        said = {"model": made, **({"evidence": evidence} if evidence else {})}
        sf.save(vector(sf.resid_post[1], seed=seed, scale=2.0).with_metadata(**said), folder / f"{name}.safetensors")
    other = vector(sf.resid_post[1]).with_metadata(model=made | {"fingerprint": "another"})
    sf.save(other, folder / "foreign.safetensors")
    return folder
