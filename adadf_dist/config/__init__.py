"""The configuration: every key, its checks, and the layers it is built from."""
