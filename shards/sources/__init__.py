"""Readers of published datasets, one file per source. Each source module has:

`add_arguments(parser)`, which declares its command line, `open_source(args)`, which lists its samples and
returns an `adadf_dist.data.build.source.Source`, and `HELP`, its line in `python -m shards.build --help`.
"""
