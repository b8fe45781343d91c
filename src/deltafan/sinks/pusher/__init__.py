"""Pusher Channels, or any server that speaks its protocol, as a sink."""
