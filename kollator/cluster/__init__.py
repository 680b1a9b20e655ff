"""How the fronts are one: who may link, what travels on a link, who leads.

``wire`` is the peer protocol's frames and the only place that knows their bytes. ``handshake`` decides,
before anything else is read, whether the other end of a link is a front of this cluster. ``election`` decides
who leads, and ``hearing`` tells the leader which fronts nobody hears.

Those four are pure: no Twisted, no database, no clock, no random source; time, chance and what came from the
disk are arguments. A frame of a peer is handled, ignored and counted, or answered with a typed error;
whatever it is, it raises nothing else.
"""
