"""A proxy in front of the API server that does what networks and busy servers do."""
