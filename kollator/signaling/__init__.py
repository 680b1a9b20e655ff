"""Signaling: who is connected and where a message goes.

``messages`` is the wire, ``switchboard`` and ``mailboxes`` decide (pure), ``protocol`` is the WebSocket
(Autobahn) that carries it, ``service`` keeps time.
"""
