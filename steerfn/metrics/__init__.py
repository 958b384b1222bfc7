"""Metrics: one number for each text, by name, as a function, or as a `Metric`."""

from steerfn.metrics._bleu import bleu as bleu
from steerfn.metrics._chrf import chrf as chrf
from steerfn.metrics._distinct_n import distinct_n as distinct_n
from steerfn.metrics._endpoint import Endpoint as Endpoint
from steerfn.metrics._endpoint import endpoint as endpoint
from steerfn.metrics._helpfulness import helpfulness as helpfulness
from steerfn.metrics._judge import judge as judge
from steerfn.metrics._judge_templates import AXBENCH as AXBENCH
from steerfn.metrics._kl_from_baseline import kl_from_baseline as kl_from_baseline
from steerfn.metrics._length import length as length
from steerfn.metrics._log_prob_difference import log_prob_difference as log_prob_difference
from steerfn.metrics._metric import Metric as Metric
from steerfn.metrics._metric import Setting as Setting
from steerfn.metrics._metric import get as get
from steerfn.metrics._metric import names as names
from steerfn.metrics._metric import register as register
from steerfn.metrics._perplexity import perplexity as perplexity
from steerfn.metrics._refusal import refusal as refusal
from steerfn.metrics._refusal_log_odds import refusal_log_odds as refusal_log_odds
from steerfn.metrics._repetition import repetition as repetition
from steerfn.metrics._rouge import rouge as rouge
from steerfn.metrics._semantic_similarity import semantic_similarity as semantic_similarity
from steerfn.metrics._sentiment import sentiment as sentiment
from steerfn.metrics._sentiment import sentiment_minilm as sentiment_minilm
from steerfn.metrics._toxicity import toxicity as toxicity
