"""Building dataset folders: samples to WebDataset tars with their indexes."""
