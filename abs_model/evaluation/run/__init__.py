"""Running an evaluation: attacks on models, verification, the ledger."""
