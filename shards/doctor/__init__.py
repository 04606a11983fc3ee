"""Implementation of `python -m shards.doctor`, which checks a dataset for problems.

The modules run in this order: `dataset_view` opens a dataset folder or an original dataset folder, `image_stats`
measures every image in worker processes, `duplicates` finds duplicates using `fingerprint`, `checks`, `release_checks`
and `duplicate_checks` yield findings, `report` collects the findings, and `html_report` renders them.
"""
