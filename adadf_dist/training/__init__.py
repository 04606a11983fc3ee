"""Parts of the training loop: setup, checks, evaluation and the final test."""
