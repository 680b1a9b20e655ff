"""What the fronts know together, and where it is kept: cr-sqlite, through apsw. The only room with SQL.

``rows`` are the replicated rows as everyone else sees them. ``tables`` says how each is stored and which
values it may have; ``schema/`` has the tables themselves. ``changes`` has what travels between fronts and
decides what of it may reach the database. Those are pure.

``store`` is what the rest uses: rows, meta, votes. ``replication`` is its other half, changes to and from
other fronts. Below them, ``database`` opens the file and holds its lock, ``lineage`` knows which database
this is (node, site id, epochs), ``dbfile`` looks at a file before anything may change it, ``extension`` finds
and loads cr-sqlite, whose prebuilt builds ``prebuilt`` names. ``writer`` keeps writes off the reactor's
thread.
"""
