"""Trained models by name: `load`, the models that come with the code, and their cards."""
