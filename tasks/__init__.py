"""The benchmarks: what is asked, and how an answer is scored.

LongBench, LongBench-E, LV-Eval and InfiniteBench are folders of data (`longbench/*.yaml`) with a
form of rows (`longbench/form.py`); this package reads them, renders their prompts, reads their
rows and scores predictions. It needs no torch and knows nothing of the models, so a file of
predictions can be scored on any machine:

    from tasks.registry import find_task
    from tasks.scoring import score_file
"""
