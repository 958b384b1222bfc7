"""The engine of every discovery method: texts, states, runs (cut, split and merged), and the quality of the outcome.

And what a steered model predicts, as losses, with the gradient search over them.
"""

from steerfn.discover._engine._chance import Chance as Chance
from steerfn.discover._engine._contrast import contrast as contrast
from steerfn.discover._engine._discover import DiscoveryOptions as DiscoveryOptions
from steerfn.discover._engine._discover import discover as discover
from steerfn.discover._engine._linear_map import LinearMap as LinearMap
from steerfn.discover._engine._linear_map import PairSums as PairSums
from steerfn.discover._engine._linear_map import best_penalty as best_penalty
from steerfn.discover._engine._logistic import logistic as logistic
from steerfn.discover._engine._matched_texts import MatchedText as MatchedText
from steerfn.discover._engine._matched_texts import Reader as Reader
from steerfn.discover._engine._matched_texts import match_texts as match_texts
from steerfn.discover._engine._matched_texts import matched_states as matched_states
from steerfn.discover._engine._matched_texts import shuffle_texts as shuffle_texts
from steerfn.discover._engine._method import Kept as Kept
from steerfn.discover._engine._method import Method as Method
from steerfn.discover._engine._method import RowPair as RowPair
from steerfn.discover._engine._method import StateRows as StateRows
from steerfn.discover._engine._method import along as along
from steerfn.discover._engine._method import check_finite as check_finite
from steerfn.discover._engine._moments import Scatter as Scatter
from steerfn.discover._engine._moments import SideSums as SideSums
from steerfn.discover._engine._moments import SummedMethod as SummedMethod
from steerfn.discover._engine._moments import Sums as Sums
from steerfn.discover._engine._moments import top_axis as top_axis
from steerfn.discover._engine._objective import Continuation as Continuation
from steerfn.discover._engine._objective import Examples as Examples
from steerfn.discover._engine._objective import examples_of as examples_of
from steerfn.discover._engine._objective import split_examples as split_examples
from steerfn.discover._engine._objective import with_margins as with_margins
from steerfn.discover._engine._quality import FOLDS as FOLDS
from steerfn.discover._engine._quality import Quality as Quality
from steerfn.discover._engine._quality import auc as auc
from steerfn.discover._engine._quality import auc_interval as auc_interval
from steerfn.discover._engine._quality import cohens_d as cohens_d
from steerfn.discover._engine._quality import quality as quality
from steerfn.discover._engine._ray import ray as ray
from steerfn.discover._engine._search import Search as Search
from steerfn.discover._engine._sides import two_sides as two_sides
from steerfn.discover._engine._threshold import Candidate as Candidate
from steerfn.discover._engine._threshold import Hits as Hits
from steerfn.discover._engine._threshold import candidate as candidate
from steerfn.discover._engine._threshold import cosines as cosines
from steerfn.discover._engine._threshold import hits as hits
from steerfn.discover._engine._threshold import left_out_cosines as left_out_cosines
from steerfn.discover._engine._threshold import rank as rank
from steerfn.discover._engine._torchrun import torchrun as torchrun
from steerfn.discover._engine._workers import Workers as Workers
