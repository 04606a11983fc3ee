"""Sources of `python -m shards.build`: one module per published dataset or generic format.

Each source module defines `HELP`, its line in `python -m shards.build --help`; `DESCRIPTION` and `EPILOG`, its own help
text; `add_arguments(parser)`, which declares its command-line options; and `open_source(args)`, which lists its samples
and returns an `adadf_dist.data.build.source.Source`.
"""
