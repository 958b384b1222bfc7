"""Contrast sets: texts that show a behaviour and texts that show its opposite.

import steerfn as sf

d = sf.datasets.load("sentiment")
train, test = d.split(held_out=0.25)
v = sf.mean_difference(model, tokenizer, positive=train.positive, negative=train.negative, sites=14)
"""

from steerfn._lazy import contents as _contents
from steerfn.datasets._files import from_file as from_file
from steerfn.datasets._files import from_rows as from_rows
from steerfn.datasets._set import ContrastSet as ContrastSet
from steerfn.datasets._shipped import load as load
from steerfn.datasets._shipped import names as names

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.datasets._content import content as content
from steerfn.datasets._content import read_text as read_text
from steerfn.datasets._folds import Texts as Texts
from steerfn.datasets._folds import deciding_tokens as deciding_tokens
from steerfn.datasets._folds import describe_texts as describe_texts
from steerfn.datasets._folds import divide as divide
from steerfn.datasets._folds import reason_against as reason_against
from steerfn.datasets._held_out import held_out as held_out
from steerfn.datasets._held_out import held_out_sides as held_out_sides
