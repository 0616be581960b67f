"""What integrations stand on."""
