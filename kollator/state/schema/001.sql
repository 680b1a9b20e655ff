-- Replicated tables: one writer a column, no deletes, primary keys are TEXT of 1 to 127 bytes and never change.
-- A column that is added here is added in tables.py too, which says what a peer may send for it.

CREATE TABLE fronts (
    id          TEXT    NOT NULL PRIMARY KEY,
    incarnation INTEGER NOT NULL DEFAULT 0,   -- raised by the front itself at each start
    retired     INTEGER NOT NULL DEFAULT 0,   -- set by the leader; the front is alive while incarnation > retired
    region      TEXT    NOT NULL DEFAULT '',
    url         TEXT    NOT NULL DEFAULT '',
    draining    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE workers (
    id       TEXT    NOT NULL PRIMARY KEY,
    region   TEXT    NOT NULL DEFAULT '',
    capacity INTEGER NOT NULL DEFAULT 100,    -- concurrent sessions
    address  TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE attachments (
    worker      TEXT    NOT NULL,
    front       TEXT    NOT NULL,
    incarnation INTEGER NOT NULL DEFAULT 0,   -- of the front
    state       TEXT    NOT NULL DEFAULT 'down',
    why         TEXT    NOT NULL DEFAULT '',  -- of a worker that is down and yet connected
    PRIMARY KEY (worker, front)
) STRICT;

CREATE TABLE pins (
    cidr   TEXT NOT NULL PRIMARY KEY,
    worker TEXT NOT NULL DEFAULT '',
    region TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE drains (
    worker   TEXT    NOT NULL PRIMARY KEY,
    draining INTEGER NOT NULL DEFAULT 0       -- what an operator said last
) STRICT;

SELECT crsql_as_crr('fronts');
SELECT crsql_as_crr('workers');
SELECT crsql_as_crr('attachments');
SELECT crsql_as_crr('pins');
SELECT crsql_as_crr('drains');

-- Local tables: about this front and this file, never replicated.

CREATE TABLE identity (                        -- one row: whose database this is
    one  INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    node TEXT    NOT NULL
) STRICT;

CREATE TABLE epochs (                          -- one row for each time the database was opened, the newest kept
    number INTEGER NOT NULL PRIMARY KEY,
    epoch  BLOB    NOT NULL UNIQUE,
    since  INTEGER NOT NULL                    -- the last db_version at that time
) STRICT;

CREATE TABLE votes (                           -- one row: the election's promise
    one       INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    term      INTEGER NOT NULL,
    voted_for TEXT
) STRICT;

CREATE TABLE cursors (                         -- how much of each sender's log has been applied here
    sender     TEXT    NOT NULL PRIMARY KEY,
    epoch      BLOB    NOT NULL,
    db_version INTEGER NOT NULL
) STRICT;

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value ANY  NOT NULL
) STRICT;
