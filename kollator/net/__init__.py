"""Sockets: endpoint strings, TLS, the PROXY protocol, the transport of accepted connections, host names."""
