-- The store, schema version 1. Times are unix seconds unless a name says ns.

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    unique_id TEXT NOT NULL,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    open INTEGER NOT NULL, -- deliveries and dead letters that still need the body; at 0 the row goes
    body BLOB NOT NULL     -- after redaction
);

CREATE TABLE seen (
    unique_id TEXT PRIMARY KEY,
    received REAL NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    event INTEGER NOT NULL -- events.id, which may be gone
) WITHOUT ROWID;
CREATE INDEX seen_received ON seen (received);

CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    event INTEGER NOT NULL,
    rule TEXT NOT NULL,
    sink TEXT NOT NULL,
    order_key TEXT,
    attempt INTEGER NOT NULL DEFAULT 1,
    due REAL NOT NULL,
    tried_since REAL
);
CREATE INDEX deliveries_due ON deliveries (sink, due, id);
CREATE INDEX deliveries_event ON deliveries (event);

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY, -- the row the delivery had, so that pages are in order of time
    delivery TEXT NOT NULL UNIQUE,
    event INTEGER NOT NULL,
    rule TEXT NOT NULL,
    sink TEXT NOT NULL,
    order_key TEXT,
    name TEXT NOT NULL,
    unique_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first REAL NOT NULL,
    last REAL NOT NULL,
    status INTEGER,
    error TEXT NOT NULL,
    response TEXT NOT NULL
);
CREATE INDEX dead_letters_unique_id ON dead_letters (unique_id);

CREATE TABLE attempts (
    delivery TEXT NOT NULL,
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    duration REAL NOT NULL, -- seconds
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER,
    error TEXT NOT NULL,
    response TEXT NOT NULL
);
CREATE INDEX attempts_delivery ON attempts (delivery);

CREATE TABLE settled (
    unique_id TEXT NOT NULL,
    rule TEXT NOT NULL,
    sink TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL,
    delivery TEXT -- where attempts are kept of it
);
CREATE INDEX settled_unique_id ON settled (unique_id);
CREATE INDEX settled_at ON settled (at);

CREATE TABLE cursors (
    source TEXT NOT NULL,
    identifier TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    recent TEXT NOT NULL DEFAULT '[]', -- JSON: the last unique_ids that came, newest last
    PRIMARY KEY (source, identifier)
) WITHOUT ROWID;

CREATE TABLE totals (
    kind TEXT NOT NULL, -- source or sink
    name TEXT NOT NULL,
    what TEXT NOT NULL, -- a field of SourceTotals or SinkTotals
    value INTEGER NOT NULL,
    PRIMARY KEY (kind, name, what)
) WITHOUT ROWID;

CREATE TABLE sinks (
    name TEXT PRIMARY KEY,
    paused REAL NOT NULL DEFAULT 0, -- seconds of pauses that have ended
    reason TEXT,                    -- null: not paused
    error TEXT NOT NULL DEFAULT '',
    since REAL NOT NULL DEFAULT 0,
    until REAL NOT NULL DEFAULT 0,
    probes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
