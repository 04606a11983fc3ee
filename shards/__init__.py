"""Command-line programs that build, verify and examine datasets: `shards.build`, `shards.verify`, `shards.doctor`."""
