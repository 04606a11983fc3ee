"""What a trained network says of pictures: files, folders, datasets, or paths as they come."""
