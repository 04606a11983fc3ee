"""Convert publicly available weights to files for `model.pretrained`."""
