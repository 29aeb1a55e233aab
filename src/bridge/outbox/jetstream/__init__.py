"""The outbox on NATS JetStream: any number of replicas, one work queue a sink (DESIGN.md §6).

Six streams and two key-value buckets (`wire.py` says what is on which subject):

    events       limits retention, `Nats-Msg-Id` = unique_id: taken in, and what the rules want of it
    deliveries   a work queue, one subject a delivery, one consumer a sink, `Nats-Msg-Id` = delivery id
    settled      what was decided about each delivery; the last decision is the one that holds
    attempts     the last 20 of each delivery
    dead         dead letters
    sights       what alerts see of events, and how far readers are; one subject a partition of the alerts
    state        cursors, alerts, memories of sinks, turns of `order: entity`
    shared       who lives, totals, leases, pauses, silences

What is promised otherwise than by the SQLite store:

- **A batch is not one transaction; an event is.** The event's message is its commit. A crash in the middle
  of a batch leaves some of it stored; the rest comes again, because cursors move last. The order is: what
  alerts see of the events, events, cursors. So no alert is lost, and what alerts have seen counts once when
  it comes again within 2 min (`REPEATS`).
- **Alerts are judged apart from what is read**, in 12 partitions, each by the replica that holds its lease: a
  notification comes half a second later than with one process. Its owner commits what changed and what is to
  be told in one entry, by compare-and-set (`bridge.replicas.owning`), and does it then. So of any number of
  owners, whatever their leases say, one goes on, and none tells what the others do not know of. A takeover
  may announce again what was committed last: under the same unique_id, so that it is a duplicate, and
  counted as one (source `alerts`). Timers are rows and go on where they were.
- **Who is not read is not missed.** While nobody reads a part of a source, and until who takes it over has
  read back, alerts about its entities wait; those of others go on. The clock of all is that of the slowest
  reader, and one that is silent for a lease (3 s at least) is none.
- **`bridge_alerts` and the other metrics of alerts are what a replica judges itself**: sums over replicas are
  everybody's. `/api/alerts`, the page and `alerts list` show everybody's, as of a second ago.
- **All replicas should run one config.** While some have another, an alert that a replica does not know yet
  is not watched where that replica judges; what another `group_by` moves to another partition is moved.
- **An id is known for `dedup_window`, exactly, by its subject**: it takes the server about 400 bytes of
  memory an event, and 2 kB of disk. `Nats-Msg-Id` absorbs what a client sends again within
  `duplicate_window` (2 min) at no look-up.
- **An event larger than the server's `max_payload`** (1 MiB) is kept without its data, and its deliveries are
  dead letters from the beginning.
- **A kill repeats what was in flight**, at most `max_in_flight` of each sink, after `ack_wait` (30 s), or
  at once where a replica that is alone comes back under its own name. A process stopped for longer than
  `ack_wait`, or cut off, repeats what it was sending; it asks before it sends what else it holds. Of two
  that have sent the same, one decides and is counted.
- **Sums hold over all replicas together**, exactly as soon as nothing is under way. Of duplicates and
  unmatched events, which leave no message, the last second (`WRITE_DOWN_EVERY`) before a kill is not
  counted, on either side of the sum.
- **Each replica shows what it counted itself**; what waits and what is dead is everybody's, as of a second
  ago.
- `oldest` of more than 5,000 waiting deliveries is when that one was received which was longest untouched;
  more than 50,000 are shown in the order in which they were last touched.
- `durability` is the server's: JetStream answers when a majority of `replicas` has it, and a single server
  syncs to disk every 2 min unless its `sync_interval` says otherwise. Losing power on all copies at once
  may lose what was accepted since.
- `max_size` is for deliveries and dead letters, all sinks together. Bodies of events are kept for
  `dedup_window` beside them: plan that space on the server.
"""
