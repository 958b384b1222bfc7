"""Scoring: how likely a model finds given continuations, under many steerings at once."""

from steerfn.scoring._engine import Scorer as Scorer
from steerfn.scoring._item import Item as Item
from steerfn.scoring._item import items_of as items_of
from steerfn.scoring._score import Scores as Scores
from steerfn.scoring._score import score as score
