"""Sockets: the only room that knows ZeroMQ. Everything above speaks in requests, replies and errors."""
