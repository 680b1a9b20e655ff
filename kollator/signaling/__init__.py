"""Signaling: who is connected and where a message goes.

``messages`` is the wire, ``decoding`` reads it. ``reception`` (up to the welcome), ``switchboard`` (from then on),
``directory`` (who is here) and ``mailboxes`` (who dropped) decide, and are pure; ``protocol`` is the WebSocket
(Autobahn) that carries it all, ``keepalive`` looks after connections that are silent.
"""
