"""Metrics by name. Each takes (prediction, example) and gives a score in [0, 1].

A prediction has been cleaned by the task's protocol before. With several gold answers the
best one counts; with none the score is 0 (LongBench's eval.py:71-76 starts from 0 likewise).
Wherever the authors' code raises, the score is defined here and documented at the metric.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks import metric_registry
from tasks.metric_registry import TABLE, register_metric
from tasks.metrics import (
    classification,
    code_similarity,
    exact_match,
    infinitebench,
    infinitebench_choice,
    infinitebench_text,
    longbench_v2,
    lveval,
    qa_f1,
    retrieval,
    rouge,
    rouge_lsum,
    ruler,
    scbench,
    scbench_function,
)
from tasks.schema import Metric

_OURS: Mapping[str, Metric] = {
    "classification": classification.classification,
    "code_similarity": code_similarity.code_similarity,
    "code_similarity_levenshtein": code_similarity.code_similarity_levenshtein,
    "count": retrieval.count,
    "exact_match": exact_match.exact_match,
    "infinitebench_character_f1": infinitebench_text.character_f1,
    "infinitebench_choice": infinitebench_choice.longbook_choice,
    "infinitebench_code_debug": infinitebench_choice.code_debug,
    "infinitebench_code_debug_letter": infinitebench_choice.code_debug_letter,
    "infinitebench_code_run": infinitebench.code_run,
    "infinitebench_dialogue": infinitebench_choice.longdialogue,
    "infinitebench_dialogue_any": infinitebench_choice.longdialogue_any,
    "infinitebench_first_number": infinitebench.first_number,
    "infinitebench_kv_retrieval": infinitebench.kv_retrieval,
    "infinitebench_math_calc": infinitebench.math_calc,
    "infinitebench_math_calc_gpt4": infinitebench.math_calc_gpt4,
    "infinitebench_math_find": infinitebench.math_find,
    "infinitebench_rouge_lsum": rouge_lsum.rouge_lsum,
    "longbench_v2_choice": longbench_v2.choice,
    "longbench_v2_choice_compensated": longbench_v2.choice_compensated,
    "lveval_f1": lveval.first_answer_f1,
    "lveval_f1_zh": lveval.first_answer_f1_zh,
    "lveval_keyword_f1": lveval.keyword_f1,
    "lveval_keyword_f1_zh": lveval.keyword_f1_zh,
    "lveval_rouge_l_zh": lveval.blacklist_rouge_l_zh,
    "qa_f1": qa_f1.qa_f1,
    "qa_f1_zh": qa_f1.qa_f1_zh,
    "retrieval": retrieval.retrieval,
    "retrieval_zh": retrieval.retrieval_zh,
    "rouge_l": rouge.rouge_l,
    "rouge_l_zh": rouge.rouge_l_zh,
    "string_match_all": ruler.string_match_all,
    "string_match_part": ruler.string_match_part,
    "scbench_all_of": scbench.all_of,
    "scbench_any_of": scbench.any_of,
    "scbench_any_of_texts": scbench.any_of_texts,
    "scbench_characters": scbench.characters,
    "scbench_function": scbench_function.function,
    "scbench_function_or_key": scbench_function.function_or_key,
    "scbench_key": scbench.key,
    "scbench_number": scbench.number,
    "scbench_summary_passkey": scbench.summary_or_passkey,
}
for _name, _function in _OURS.items():
    register_metric(_name, _function)

METRICS: Mapping[str, Metric] = TABLE
"""These metrics, those that were registered, and those of other packages."""


def find_metric(name: str) -> Metric:
    """See `tasks.metric_registry.find_metric`; here, so that who has it has these metrics, too."""
    return metric_registry.find_metric(name)
