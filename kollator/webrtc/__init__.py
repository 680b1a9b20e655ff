"""The reference worker: registers with fronts, answers offers and serves a folder over a WebRTC data channel.

It runs as a process of its own on Twisted's asyncio reactor, because aiortc needs an asyncio loop. A front
never imports anything from here.

* ``channel``: the wire format on the data channel; ``files``: the served folder; ``serving``: one channel's
  requests
* ``offer``: what is read out of an offer; ``ice``: STUN and TURN servers; ``session``: the peer connections
* ``registration``, ``backoff``: the pure parts of ``uplink``, the WebSocket to one front
* ``options``: the command line and the environment; ``libraries``: aiortc's and aioice's log and tasks;
  ``worker``: all of it as a service for ``twistd kollator-worker``
* ``attempt``: one deep check of a worker; ``probe``: the front's process that makes them
* ``demo/``: what is served when no folder is named
"""
