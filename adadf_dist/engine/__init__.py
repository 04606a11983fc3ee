"""Engines: one training step over all ranks, with DDP or DeepSpeed."""
