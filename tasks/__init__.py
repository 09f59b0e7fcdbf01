"""The benchmarks: what is asked, and how an answer is scored.

A benchmark is a folder of YAML files, `tasks/longbench` for example: `_benchmark.yaml` with what
its tasks share, one file for each task, and, where its rows differ from LongBench's, a module
`adapter`. Other packages add benchmarks and metrics by entry points in the groups
`ahn_bench.benchmarks` and `ahn_bench.metrics`. This package reads the folders, renders prompts,
reads rows and scores predictions. It needs no torch and knows nothing of the models, so a file of
predictions can be scored on any machine:

    from tasks.registry import find_task
    from tasks.scoring import score_file
"""

from tasks.metric_registry import register_metric

__all__ = ["register_metric"]
