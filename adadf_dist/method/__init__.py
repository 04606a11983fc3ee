"""The method of the paper: networks, losses, class distributions, and the weights that networks start from."""
