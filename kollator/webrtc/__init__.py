"""The reference worker: registers with fronts, answers offers and serves a folder over a WebRTC data channel.

It runs as a process of its own on Twisted's asyncio reactor, because aiortc needs an asyncio loop. A front
never imports anything from here. ``channel`` is the wire format on the data channel, ``files`` the served
folder, ``serving`` one channel's requests, ``session`` the peer connections, ``ice`` the STUN and TURN
servers they use, ``uplink`` the WebSocket to one front, ``options`` the command line and the environment,
and ``worker`` puts them together for ``twistd kollator-worker``.
"""
