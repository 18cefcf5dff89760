"""What reports, predictions, comparisons and sweeps cost when they grow; see `__main__`."""
