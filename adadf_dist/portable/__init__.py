"""The target branch of a trained network as others take it, with all that its use needs, in three kinds of file."""
