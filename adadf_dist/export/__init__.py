"""From a checkpoint to files that others run, each checked against the checkpoint, with a model card beside."""
