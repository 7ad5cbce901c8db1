"""What training and evaluation share: files, errors, configurations, command lines, provenance."""
