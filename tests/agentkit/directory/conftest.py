from tests.consul.fixtures import consul_cluster, consul_server

__all__ = ["consul_cluster", "consul_server"]
