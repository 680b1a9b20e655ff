"""Which database this is: its node, its site id, and which stretches of its log it has told others about.

**A site id** names the database that wrote a change, and goes with it wherever it is sent. cr-sqlite wants one id
for one database: with two that write under the same id, a site, a row, a column and its counter would name two
different values. Fronts leave nothing out by site id, and of two values with one counter the larger wins whoever
wrote it, so rows would still become equal; what comes after cr-sqlite, or looks into the file, may rely on more.

**A copy.** The node that a database was made for is stored in it; opened by another one, it is a copy (or the
node was renamed, which is treated the same) and becomes a new database that knows what the old one knew: it gets
a new site id, its cursors and epochs are dropped, for they are the other's and its log is another one from here
on, ``meta`` is emptied (what is there is about the other front), and the vote of its term counts as cast, for
itself: it may not have been this node's vote, but whoever this node voted for, it will not vote twice. The term
stays.

**A wiped or restored one.** A peer's cursor says "I have your log up to db_version n". After a wipe, or when
an older copy of the file was put back, the log is shorter, and grows past n again with other changes, which
the peer would never ask for. Comparing n with the log's end finds that only for a while. So each opening
draws a random epoch and stores it with the db_version of that moment, and cursors name the epoch they were
told in. A cursor (e, n) is a place in this log only when e is one of its epochs and n is not past the end of
e, which is where the next epoch began. If it is not, the peer gets everything again (``Batch.rewound``). The
same holds after a loss of power with synchronous=NORMAL, which may take back the last transactions.

A restored database has also lost writes of its own that its peers still hold, and it uses the same counters again
for other values. Nothing is left out of what a front sends, the receiver's own writes neither, so those come back,
at once or later by way of a third front; the larger counters win, and the front then says again what is true of it
now (``Store.merge``). And when a peer shows a cursor that this database does not know, ``Store.renew_site_id``
gives it a new site id: its lost writes are from then on another database's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import apsw

from kollator.state.changes import SITE_ID_BYTES, START, Cursor
from kollator.state.database import Database, select

Origin = Literal["new", "copy", "known"]

NewId = Callable[[], bytes]
"""Draws 16 random bytes."""

EPOCHS_KEPT = 64
"""A peer whose cursor is from an older opening than that many is sent everything again."""

_OWN_SITE_ID = "UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0"


def draw(new_id: NewId) -> bytes:
    """A new site id or epoch. Raises ``ValueError`` when the source is not what it must be."""
    drawn = new_id()
    if type(drawn) is not bytes or len(drawn) != SITE_ID_BYTES:
        raise ValueError(f"a site id is {SITE_ID_BYTES} bytes")
    return drawn


def adopt(database: Database, node: str, new_id: NewId) -> Origin:
    """Before cr-sqlite is loaded: give a new database its site id, and a copy of another node's a new one.

    Returns what the database is: ``new``, a ``copy``, or ``known``, the node's own from before.
    """
    with database.transaction() as connection:
        names = {name for (name,) in select(connection, "SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "crsql_site_id" not in names:
            # As cr-sqlite itself makes it; it takes the one it finds.
            connection.execute(
                'CREATE TABLE "crsql_site_id" (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);'
                'CREATE UNIQUE INDEX crsql_site_id_site_id ON "crsql_site_id" (site_id)'
            ).fetchall()
            connection.execute("INSERT INTO crsql_site_id (site_id, ordinal) VALUES (?, 0)", (draw(new_id),))
        if "identity" not in names:
            return "new"
        stored = select(connection, "SELECT node FROM identity")
        if not stored or stored[0][0] == node:
            return "known" if stored else "new"
        connection.execute(_OWN_SITE_ID, (draw(new_id),))
        connection.execute("DELETE FROM cursors; DELETE FROM epochs; DELETE FROM meta").fetchall()
        connection.execute("UPDATE votes SET voted_for = ?", (node,))
        connection.execute("UPDATE identity SET node = ?", (node,))
        return "copy"


def renew_site_id(database: Database, new_id: NewId) -> None:
    """Give an open database a new site id. What it wrote so far counts as the new one's."""
    site_id = draw(new_id)

    def change(connection: apsw.Connection) -> None:
        connection.execute(_OWN_SITE_ID, (site_id,))

    database.reopen(change)


class Epochs:
    """The openings of a database: which cursors are places in its log."""

    def __init__(self, database: Database, node: str, new_id: NewId) -> None:
        """Begin an epoch; ``node`` is the database's from now on."""
        self._database = database
        self.current = draw(new_id)
        with database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO identity (one, node) VALUES (1, ?)", (node,))
            connection.execute(
                "INSERT INTO epochs (number, epoch, since) SELECT coalesce(max(number), 0) + 1, ?, ? FROM epochs",
                (self.current, database.head),
            )
            connection.execute(
                "DELETE FROM epochs WHERE number <= (SELECT max(number) FROM epochs) - ?", (EPOCHS_KEPT,)
            )
            rows = select(connection, "SELECT epoch, since FROM epochs ORDER BY number")
        self._ends: dict[bytes, int] = {epoch: end for (epoch, _), (_, end) in pairwise(rows)}

    @property
    def head(self) -> Cursor:
        """The end of this log."""
        return Cursor(self.current, self._database.head)

    def knows(self, cursor: Cursor) -> bool:
        """Whether the cursor is a place in this log; the beginning always is."""
        if cursor == START:
            return True
        end = self._database.head if cursor.epoch == self.current else self._ends.get(cursor.epoch, -1)
        return 0 <= cursor.db_version <= end
