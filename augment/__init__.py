"""Multiply SQuAD-format training data."""
