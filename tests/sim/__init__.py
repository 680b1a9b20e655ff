"""A whole cluster in one process and in no time: what breaks in a week of bad weather breaks here in a minute.

Elections, members, stores (cr-sqlite in memory), pools, rosters and writers are the real ones, and frames go
through the peer protocol's bytes. Simulated are time (``world``), disks (``disk``) and the network with its links
(``network``); ``fronts`` is the glue of one front, ``cluster`` checks the invariants, ``weather`` draws what
happens. Everything follows from the seed: ``python -m tests.sim --seed N --fronts 5 --steps M`` replays a run.
"""
