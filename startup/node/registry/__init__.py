"""Consul: what is registered there, and what is seen there."""
