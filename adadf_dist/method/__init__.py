"""The paper's method: networks, losses, class distributions, and pretrained weights."""
