"""Classifiers, and what they are built of: architectures, VAEs, decoders."""
