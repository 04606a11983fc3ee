"""Readers of published datasets, one file each. A source has three functions and a class:

`add_arguments(parser)` declares its command line, `open_source(args)` reads what is needed to list its faces and
returns an `adadf_dist.data.build.builder.Source`; `HELP` is its line in `python -m shards.build --help`.
"""
