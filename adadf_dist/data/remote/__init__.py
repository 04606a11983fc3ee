"""Datasets on object storage and web servers, and their local cache."""
