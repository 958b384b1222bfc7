"""Discovery: from texts to steering vectors, one method a file."""

from steerfn.discover._caa import caa as caa
from steerfn.discover._calibrate import Calibration as Calibration
from steerfn.discover._calibrate import calibrate as calibrate
from steerfn.discover._find_condition import FoundCondition as FoundCondition
from steerfn.discover._find_condition import find_condition as find_condition
from steerfn.discover._iti import iti as iti
from steerfn.discover._lat import lat as lat
from steerfn.discover._lda import lda as lda
from steerfn.discover._lint import Finding as Finding
from steerfn.discover._lint import LintReport as LintReport
from steerfn.discover._lint import lint_pairs as lint_pairs
from steerfn.discover._mean import mean_difference as mean_difference
from steerfn.discover._optimise import optimise as optimise
from steerfn.discover._pca import pca as pca
from steerfn.discover._probe import linear_probe as linear_probe
from steerfn.discover._profile import Profile as Profile
from steerfn.discover._profile import layer_profile as layer_profile
from steerfn.discover._random import random_vector as random_vector
from steerfn.discover._refusal import refusal_direction as refusal_direction
from steerfn.discover._sae import from_sae as from_sae
from steerfn.discover._spread import spread as spread
from steerfn.discover.engine._quality import Quality as Quality
from steerfn.discover.engine._quality import quality as quality
from steerfn.discover.engine._torchrun import torchrun as torchrun
from steerfn.discover.engine._workers import Workers as Workers
from steerfn.discover.search._threshold import Hits as Hits
