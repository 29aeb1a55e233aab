-- A small store: one delivery that waits at two sinks, one put off, one dead, one delivered.
BEGIN TRANSACTION;
CREATE TABLE alert_states (
    part TEXT NOT NULL, -- track, group, silence or blind
    alert TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL, -- JSON
    PRIMARY KEY (part, alert, key)
) WITHOUT ROWID;
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
INSERT INTO "attempts" VALUES(2097152,1,1795468146.0,0.25,'retried','server_error',500,'HTTP 500','sorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrys');
INSERT INTO "attempts" VALUES(3145728,1,1795468146.0,0.25,'retried','server_error',500,'HTTP 500','sorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrys');
CREATE TABLE cursors (
    source TEXT NOT NULL,
    identifier TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    recent TEXT NOT NULL DEFAULT '[]', -- JSON: the last unique_ids that came, newest last
    PRIMARY KEY (source, identifier)
) WITHOUT ROWID;
INSERT INTO "cursors" VALUES('eu1','application plant-a',1795468146000000000,'["waits", "later"]');
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
INSERT INTO "dead_letters" VALUES(3145728,'d_4upef32wc5o2fkc336gcbonfwo','r','crm',NULL,'as.up.data.forward','dead','expired',1,1795468146.0,1795468146.0,500,'HTTP 500','sorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorrysorry');
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
INSERT INTO "deliveries" VALUES('crm',1048576,'r',NULL,1,1795468146.0,NULL,NULL,'',NULL);
INSERT INTO "deliveries" VALUES('crm',2097152,'r',NULL,2,1795468146.0,1795468146.0,1795468146.0,'HTTP 500',NULL);
INSERT INTO "deliveries" VALUES('ops',1048577,'r',NULL,1,1795468146.0,NULL,NULL,'',NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    unique_id TEXT NOT NULL,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    open INTEGER NOT NULL, -- deliveries and dead letters that still need the body; at 0 the row goes
    body BLOB NOT NULL     -- after redaction
);
INSERT INTO "events" VALUES(1,'waits','eu1',1795468146.0,2,X'7B226E616D65223A2261732E75702E646174612E666F7277617264222C22756E697175655F6964223A227761697473222C2274696D65223A22323032362D31312D32335432313A34393A30365A227D');
INSERT INTO "events" VALUES(2,'later','eu1',1795468146.0,1,X'7B226E616D65223A2261732E75702E646174612E666F7277617264222C22756E697175655F6964223A226C61746572222C2274696D65223A22323032362D31312D32335432313A34393A30365A227D');
INSERT INTO "events" VALUES(3,'dead','eu1',1795468146.0,1,X'7B226E616D65223A2261732E75702E646174612E666F7277617264222C22756E697175655F6964223A2264656164222C2274696D65223A22323032362D31312D32335432313A34393A30365A227D');
CREATE TABLE seen (
    event INTEGER PRIMARY KEY, -- its number; the body may be gone
    unique_id TEXT NOT NULL UNIQUE,
    received REAL NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL
);
INSERT INTO "seen" VALUES(1,'waits',1795468146.0,'as.up.data.forward','eu1');
INSERT INTO "seen" VALUES(2,'later',1795468146.0,'as.up.data.forward','eu1');
INSERT INTO "seen" VALUES(3,'dead',1795468146.0,'as.up.data.forward','eu1');
INSERT INTO "seen" VALUES(4,'delivered',1795468146.0,'as.up.data.forward','eu1');
CREATE TABLE settled (
    id INTEGER PRIMARY KEY, -- the row the delivery had
    rule TEXT NOT NULL,
    sink TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL
);
INSERT INTO "settled" VALUES(4194304,'r','crm','delivered',1795468146.25);
CREATE TABLE sink_memory (
    sink TEXT NOT NULL,
    key TEXT NOT NULL,  -- the sink's own
    value TEXT NOT NULL, -- JSON
    PRIMARY KEY (sink, key)
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
INSERT INTO "sinks" VALUES('ops',0.0,'auth','HTTP 401',1795468146.0,1795468206.0,1);
CREATE TABLE totals (
    kind TEXT NOT NULL, -- source, sink or store
    name TEXT NOT NULL,
    what TEXT NOT NULL, -- a field of SourceTotals or SinkTotals; of the store: events, how many were numbered
    value INTEGER NOT NULL,
    PRIMARY KEY (kind, name, what)
) WITHOUT ROWID;
INSERT INTO "totals" VALUES('sink','crm','accepted',4);
INSERT INTO "totals" VALUES('sink','crm','dead',1);
INSERT INTO "totals" VALUES('sink','crm','delivered',1);
INSERT INTO "totals" VALUES('sink','crm','died',1);
INSERT INTO "totals" VALUES('sink','crm','retried',1);
INSERT INTO "totals" VALUES('sink','crm','waiting',2);
INSERT INTO "totals" VALUES('sink','ops','accepted',1);
INSERT INTO "totals" VALUES('sink','ops','waiting',1);
INSERT INTO "totals" VALUES('source','eu1','accepted',4);
INSERT INTO "totals" VALUES('source','eu1','received',4);
INSERT INTO "totals" VALUES('store','','events',4);
CREATE INDEX deliveries_due ON deliveries (sink, due, id) WHERE due IS NOT NULL;
CREATE INDEX deliveries_order ON deliveries (sink, order_key, id) WHERE order_key IS NOT NULL;
CREATE INDEX deliveries_supersedes ON deliveries (sink, supersedes, id) WHERE supersedes IS NOT NULL;
CREATE INDEX dead_letters_last ON dead_letters (last);
CREATE INDEX attempts_delivery ON attempts (delivery);
PRAGMA user_version=1;
COMMIT;
