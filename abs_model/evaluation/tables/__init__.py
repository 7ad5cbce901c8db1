"""From an evaluation's ledgers to tables."""
