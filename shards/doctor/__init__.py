"""Implementation of `python -m shards.doctor`, in the order in which it runs:

`dataset_view` opens a dataset folder or a raw tree, `image_stats` measures every image in worker processes,
`duplicates` finds duplicates (using `fingerprint`), `checks`, `release_checks` and `duplicate_checks` produce each a
`finding`, `report` collects the findings and `html_report` renders them.
"""
