"""What every attack uses: the query session, its results, norms, losses, keys and checks."""
