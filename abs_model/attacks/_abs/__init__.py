"""What only attacks on ABS models use: explanations, and the bounds that they give."""
