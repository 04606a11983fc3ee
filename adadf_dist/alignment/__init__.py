"""Detect faces in photos, and align them to a standard pose."""
