"""What tests with a real Consul need: its program (debian.py), servers on free ports (server.py), a bad line to one (proxy.py)."""
