"""Measuring: the field's metrics and protocol."""
