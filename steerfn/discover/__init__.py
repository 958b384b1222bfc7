"""Discovery: from texts to steering vectors, one method a file."""

from steerfn._lazy import contents as _contents
from steerfn.discover._caa import caa as caa
from steerfn.discover._calibrate import Calibration as Calibration
from steerfn.discover._calibrate import calibrate as calibrate
from steerfn.discover._engine import Hits as Hits
from steerfn.discover._engine import Quality as Quality
from steerfn.discover._engine import Workers as Workers
from steerfn.discover._engine import quality as quality
from steerfn.discover._find_condition import FoundCondition as FoundCondition
from steerfn.discover._find_condition import find_condition as find_condition
from steerfn.discover._from_sae import from_sae as from_sae
from steerfn.discover._iti import iti as iti
from steerfn.discover._lat import lat as lat
from steerfn.discover._layer_profile import Profile as Profile
from steerfn.discover._layer_profile import layer_profile as layer_profile
from steerfn.discover._lda import lda as lda
from steerfn.discover._linear_probe import linear_probe as linear_probe
from steerfn.discover._lint_pairs import Finding as Finding
from steerfn.discover._lint_pairs import LintReport as LintReport
from steerfn.discover._lint_pairs import lint_pairs as lint_pairs
from steerfn.discover._mean_difference import mean_difference as mean_difference
from steerfn.discover._optimise import optimise as optimise
from steerfn.discover._pca import pca as pca
from steerfn.discover._random_vector import random_vector as random_vector
from steerfn.discover._refusal_direction import refusal_direction as refusal_direction
from steerfn.discover._spread import spread as spread
from steerfn.discover._transfer import transfer as transfer
from steerfn.discover._transferred import Transferred as Transferred

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.discover._engine import Chance as Chance
from steerfn.discover._engine import auc as auc
from steerfn.discover._engine import auc_interval as auc_interval
from steerfn.discover._engine import cohens_d as cohens_d
from steerfn.discover._engine import contrast as contrast
from steerfn.discover._engine import cosines as cosines
