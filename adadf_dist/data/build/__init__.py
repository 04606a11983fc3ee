"""Build dataset folders: write samples to WebDataset tars with indexes."""
