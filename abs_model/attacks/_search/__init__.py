"""Searches that several attacks are built of."""
