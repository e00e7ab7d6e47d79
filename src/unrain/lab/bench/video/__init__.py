"""Flicker in videos, and clips to measure it on."""
