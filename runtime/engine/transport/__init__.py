"""The engine's process and the messages between it and the server."""
