"""The upper floor: networks, training, export and benchmark. Needs the `lab` extra (PyTorch)."""
