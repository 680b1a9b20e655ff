"""HTTP: the client page, the JSON endpoints of the contract, and the door that tells WebSockets from requests."""
