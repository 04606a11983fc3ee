"""Programs that make and check dataset folders: `python -m shards.build --help`, `python -m shards.verify --help`."""
