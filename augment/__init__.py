"""Multiply SQuAD-format training data: masking, POS-guided replacement, n-gram sampling, contextual replacement.

augment_squad.augment_squad    a file; also `python -m augment.augment_squad`
augmenter.Augmenter            an example at a time
augmenter.augmented            a stream of examples, to train on as they are made
settings                       what is edited, how much and how often, and how a job runs
"""
