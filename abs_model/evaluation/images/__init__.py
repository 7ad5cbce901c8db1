"""Pictures of an evaluation, and adversarial images as files."""
