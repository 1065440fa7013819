"""Who is who: CURVE keys, the roles that they stand for, and whom ZeroMQ lets in. Loaded only where a cluster has keys."""
