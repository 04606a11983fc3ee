"""What `python -m shards.doctor` is made of, in the order in which it runs:

`material` opens a dataset folder or a raw tree, `examine` measures every face in worker processes, `copies` finds faces
that stand there more than once (by `fingerprint`), `checks` and `copy_checks` judge, `verdict` is what they say, `page`
shows it.
"""
