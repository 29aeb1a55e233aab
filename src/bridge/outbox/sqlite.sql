-- The store, schema version 1. Times are unix seconds unless a name says ns.
--
-- Events are numbered as they come and a number is never used again. The nth delivery an event makes is row
-- `number << 20 | n` wherever it is kept (deliveries, dead_letters, settled, attempts): rows are in the order
-- in which events came, and those of one event are a range.

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    unique_id TEXT NOT NULL,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    open INTEGER NOT NULL, -- deliveries and dead letters that still need the body; at 0 the row goes
    body BLOB NOT NULL     -- after redaction
);

CREATE TABLE seen (
    event INTEGER PRIMARY KEY, -- its number; the body may be gone
    unique_id TEXT NOT NULL UNIQUE,
    received REAL NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL
);

CREATE TABLE deliveries (
    sink TEXT NOT NULL,
    id INTEGER NOT NULL,
    rule TEXT NOT NULL,
    order_key TEXT,                    -- of `order: entity`: one at a time
    attempt INTEGER NOT NULL DEFAULT 1,
    due REAL,                          -- null: another of its order key goes first
    tried_since REAL,                  -- Delivery.tried_since
    first REAL,                        -- first attempt
    error TEXT NOT NULL DEFAULT '',    -- of the last attempt
    supersedes TEXT,                   -- of a notification: a newer one with this key takes its place
    PRIMARY KEY (sink, id)
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (sink, due, id) WHERE due IS NOT NULL;
CREATE INDEX deliveries_order ON deliveries (sink, order_key, id) WHERE order_key IS NOT NULL;
CREATE INDEX deliveries_supersedes ON deliveries (sink, supersedes, id) WHERE supersedes IS NOT NULL;

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY, -- the row the delivery had, so that pages are in order of time
    delivery TEXT NOT NULL UNIQUE,
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
CREATE INDEX dead_letters_last ON dead_letters (last);

CREATE TABLE attempts (
    delivery INTEGER NOT NULL, -- its row
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
    id INTEGER PRIMARY KEY, -- the row the delivery had
    rule TEXT NOT NULL,
    sink TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE cursors (
    source TEXT NOT NULL,
    identifier TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    recent TEXT NOT NULL DEFAULT '[]', -- JSON: the last unique_ids that came, newest last
    PRIMARY KEY (source, identifier)
) WITHOUT ROWID;

CREATE TABLE alert_states (
    part TEXT NOT NULL, -- track, group, silence or blind
    alert TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL, -- JSON
    PRIMARY KEY (part, alert, key)
) WITHOUT ROWID;

CREATE TABLE sink_memory (
    sink TEXT NOT NULL,
    key TEXT NOT NULL,  -- the sink's own
    value TEXT NOT NULL, -- JSON
    PRIMARY KEY (sink, key)
) WITHOUT ROWID;

CREATE TABLE totals (
    kind TEXT NOT NULL, -- source, sink or store
    name TEXT NOT NULL,
    what TEXT NOT NULL, -- a field of SourceTotals or SinkTotals; of the store: events, how many were numbered
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
