"""The method of the Ada-DF paper: networks, losses, class distributions and pretrained weights."""
