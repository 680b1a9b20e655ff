"""The worker pool: which worker serves which range of addresses, and why.

The pool is a pure function of the set of replicated rows, so fronts that hold the same rows give the same
answers and show the same digest. ``ranges`` cuts addresses into ranges and finds pins, ``ring`` is the
weighted consistent-hash ring, ``assignment`` decides by region, state and exclusions, ``pool`` turns rows
into all that. ``health`` decides which of the workers held by this front are to be pinged, which are lost and
which may come back.
"""
