"""What a run is, as plain values: to save, to check and to compare."""
