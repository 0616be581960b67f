"""What the processes of a run do together."""
