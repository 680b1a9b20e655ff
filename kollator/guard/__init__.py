"""What a front lets in: the room of keys, tickets, limits, addresses, origins and checks of relayed content.

Everything here is pure: no Twisted, no clock, no random source. ``now`` is a number of seconds, random bytes
are an argument, and the one thing that is read is a key file at start-up. The adapters ask, act on the answer
and count it.

Two habits hold for every module. What comes from outside gets an answer or the module's own typed error,
never another exception. And every table has a cap, so that a flood costs its sender and nobody else.
"""
