"""Metrics: one number for each text, by name, as a function, or as a `Metric`."""

from steerfn._lazy import contents as _contents
from steerfn.metrics._endpoint import Endpoint as Endpoint
from steerfn.metrics._endpoint import endpoint as endpoint
from steerfn.metrics._helpfulness import helpfulness as helpfulness
from steerfn.metrics._judge import AXBENCH as AXBENCH
from steerfn.metrics._judge import judge as judge
from steerfn.metrics._likelihood import kl_from_baseline as kl_from_baseline
from steerfn.metrics._likelihood import log_prob_difference as log_prob_difference
from steerfn.metrics._likelihood import perplexity as perplexity
from steerfn.metrics._metric import Metric as Metric
from steerfn.metrics._metric import Setting as Setting
from steerfn.metrics._metric import get as get
from steerfn.metrics._metric import names as names
from steerfn.metrics._metric import register as register
from steerfn.metrics._overlap import bleu as bleu
from steerfn.metrics._overlap import chrf as chrf
from steerfn.metrics._overlap import rouge as rouge
from steerfn.metrics._refusal import refusal as refusal
from steerfn.metrics._refusal import refusal_log_odds as refusal_log_odds
from steerfn.metrics._semantic_similarity import semantic_similarity as semantic_similarity
from steerfn.metrics._sentiment import sentiment as sentiment
from steerfn.metrics._sentiment import sentiment_minilm as sentiment_minilm
from steerfn.metrics._toxicity import toxicity as toxicity
from steerfn.metrics._words import distinct_n as distinct_n
from steerfn.metrics._words import length as length
from steerfn.metrics._words import repetition as repetition

__dir__ = _contents(globals())

# What other folders use besides.
from steerfn.metrics._likelihood import divergence as divergence
from steerfn.metrics._metric import AnyMetric as AnyMetric
from steerfn.metrics._metric import Metrics as Metrics
from steerfn.metrics._metric import as_metrics as as_metrics
from steerfn.metrics._metric import describe_metric as describe_metric
from steerfn.metrics._metric import measure as measure
from steerfn.metrics._metric import try_metrics as try_metrics
from steerfn.metrics._refusal import BATCH as BATCH
from steerfn.metrics._refusal import PHRASES as PHRASES
from steerfn.metrics._refusal import log_odds as log_odds
from steerfn.metrics._refusal import refusal_tokens as refusal_tokens
