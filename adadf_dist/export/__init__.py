"""Export a checkpoint to other formats, verify each file against the checkpoint, and write a model card."""
