"""Take the rain out of pictures."""
