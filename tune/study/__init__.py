"""Studies: search spaces, trials, early stopping and selection of the winner."""
