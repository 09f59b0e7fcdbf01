"""Metrics by name. Each takes (prediction, example) and gives a score in [0, 1].

A prediction has been cleaned by the task's protocol before. With several gold answers the
best one counts; with none the score is 0 (LongBench's eval.py:71-76 starts from 0 likewise).
Wherever the authors' code raises, the score is defined here and documented at the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tasks.metrics import (
    classification,
    code_similarity,
    exact_match,
    qa_f1,
    retrieval,
    rouge,
)
from tasks.schema import Example

Metric = Callable[[str, Example], float]

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "classification": classification.classification,
        "code_similarity": code_similarity.code_similarity,
        "count": retrieval.count,
        "exact_match": exact_match.exact_match,
        "qa_f1": qa_f1.qa_f1,
        "qa_f1_zh": qa_f1.qa_f1_zh,
        "retrieval": retrieval.retrieval,
        "retrieval_zh": retrieval.retrieval_zh,
        "rouge_l": rouge.rouge_l,
        "rouge_l_zh": rouge.rouge_l_zh,
    }
)
