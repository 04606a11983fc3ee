"""Parts of the training loop: setup, checks, evaluation, the final test."""
