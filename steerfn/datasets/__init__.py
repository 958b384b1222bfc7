"""Contrast sets: texts that show a behaviour and texts that show its opposite.

import steerfn as sf

d = sf.datasets.load("sentiment")
train, test = d.split(held_out=0.25)
v = sf.mean_difference(model, tokenizer, positive=train.positive, negative=train.negative, sites=14)
"""

from steerfn.datasets._files import from_file as from_file
from steerfn.datasets._files import from_rows as from_rows
from steerfn.datasets._set import ContrastSet as ContrastSet
from steerfn.datasets._shipped import load as load
from steerfn.datasets._shipped import names as names
