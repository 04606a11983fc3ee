"""Building dataset folders: writes samples to WebDataset tars with their indexes."""
