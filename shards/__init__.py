"""Programs that build and check dataset folders: `python -m shards.build --help`, `python -m shards.verify --help`."""
