"""Who leads: locks between agents of one machine, and between machines by Consul."""
