"""Training engines, which run a training step across all ranks using DDP or DeepSpeed."""
