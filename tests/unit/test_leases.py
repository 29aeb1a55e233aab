"""Leases: of all interleavings of two replicas none lets both act, and one that was stopped is fenced.

The model is the bucket's entry, two replicas that use the real `Leases`, and the messages between them, each
as late as one likes; a replica that does not move was stopped. Only ages and the order of revisions matter,
so the states are finitely many and all of them are visited.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from bridge.leases import Entry, GiveBack, Held, Leases, Take, Watched, share, spread

LEASE = 3.0  # seconds; the model's clock goes by whole ones
OLDEST = -(LEASE + 1)  # beyond that an age makes no difference
NAME = "eu1"
ME = ("a", "b")


class Replica(NamedTuple):
    """Times are seconds before now."""

    held: Held | None = None
    watched: Watched | None = None
    request: tuple[int, float] | None = None
    """A Take on its way: the revision it expects, and when it was asked for."""
    answer: tuple[int | None, float] | None = None
    checked: int | None = None
    """It has looked whether it may send, under this revision, and is about to."""
    renewed: bool = False
    """It has renewed its lease for a write, and is about to write."""
    knows: bool = False
    """What it would write on is what is stored."""

    def leases(self, me: str, kind: type[Leases] = Leases) -> Leases:
        found = kind(me, LEASE)
        if self.held:
            found.held[NAME] = self.held
        if self.watched:
            found.watched[NAME] = self.watched
        return found

    def with_leases(self, leases: Leases) -> Replica:
        return self._replace(held=leases.held.get(NAME), watched=leases.watched.get(NAME))

    @property
    def is_idle(self) -> bool:
        return self.request is None and self.answer is None and self.checked is None and not self.renewed


class State(NamedTuple):
    """*stale*: somebody has sent, or written, what another one owned by then."""

    entry: Entry | None = None
    replicas: tuple[Replica, Replica] = (Replica(), Replica())
    stale: bool = False
    taken_by: int | None = None
    """Who has taken over what is stored, in its own name."""

    def put(self, number: int, replica: Replica, **changes: object) -> State:
        both = list(self.replicas)
        both[number] = replica
        return self._replace(replicas=(both[0], both[1]), **changes)  # type: ignore[arg-type]

    def next_revision(self) -> int:
        return 1 + max(self.revisions(), default=0)

    def revisions(self) -> Iterator[int]:
        if self.entry:
            yield self.entry.revision
        for each in self.replicas:
            yield from (found.revision for found in (each.held, each.watched) if found)
            yield from (found[0] for found in (each.request, each.answer) if found and found[0] is not None)
            if each.checked is not None:
                yield each.checked


class Rules(NamedTuple):
    """What is explored: with or without the fence, and with which kind of leases."""

    fenced: bool = True
    kind: type[Leases] = Leases
    writes: Literal["none", "after renewal", "conditional"] = "none"
    """How what belongs to the owner is stored."""


def shifted(state: State, seconds: float) -> State:
    """*seconds* later: everything is older, and revisions are numbered anew in their order."""
    ranks = {revision: rank for rank, revision in enumerate(sorted({0, *state.revisions()}))}

    def at(time: float) -> float:
        return max(OLDEST, time - seconds)

    def older(each: Replica) -> Replica:
        request, answer = each.request, each.answer
        return Replica(
            Held(ranks[each.held.revision], at(each.held.asked)) if each.held else None,
            Watched(ranks[each.watched.revision], at(each.watched.since)) if each.watched else None,
            (ranks[request[0]], at(request[1])) if request else None,
            (None if answer[0] is None else ranks[answer[0]], at(answer[1])) if answer else None,
            None if each.checked is None else ranks[each.checked],
            each.renewed,
            each.knows,
        )

    entry = Entry(state.entry.holder, ranks[state.entry.revision]) if state.entry else None
    return state._replace(entry=entry, replicas=(older(state.replicas[0]), older(state.replicas[1])))


def looks(state: State, number: int, rules: Rules) -> State | None:
    """Asks the bucket, and begins what follows."""
    mine = state.replicas[number]
    if not mine.is_idle:
        return None
    leases = mine.leases(ME[number], rules.kind)
    leases.see(NAME, state.entry, 0.0)
    step = leases.step(NAME, state.entry, 0.0, wanted=True)
    mine = mine.with_leases(leases)
    return state.put(number, mine._replace(request=(step.expect, 0.0)) if isinstance(step, Take) else mine)


def arrives(state: State, number: int, rules: Rules) -> State | None:
    """Its request reaches the bucket, however late."""
    mine = state.replicas[number]
    if mine.request is None:
        return None
    expect, asked = mine.request
    if expect != (state.entry.revision if state.entry else 0):
        return state.put(number, mine._replace(request=None, answer=(None, asked)))
    revision = state.next_revision()
    entry = Entry(ME[number], revision)
    return state.put(number, mine._replace(request=None, answer=(revision, asked)), entry=entry)


def hears(state: State, number: int, rules: Rules) -> State | None:
    """The answer comes back, however late."""
    mine = state.replicas[number]
    if mine.answer is None:
        return None
    leases = mine.leases(ME[number], rules.kind)
    leases.took(NAME, *mine.answer)
    return state.put(number, mine.with_leases(leases)._replace(answer=None))


def checks(state: State, number: int, rules: Rules) -> State | None:
    """Before it sends it looks at its lease; it may be stopped right after that."""
    mine = state.replicas[number]
    if not mine.is_idle or mine.held is None or NAME not in mine.leases(ME[number], rules.kind).sure(0.0):
        return None
    return state.put(number, mine._replace(checked=mine.held.revision))


def sends(state: State, number: int, rules: Rules) -> State | None:
    """With fencing the bucket has to agree that nobody has taken the lease since."""
    mine = state.replicas[number]
    if mine.checked is None:
        return None
    token, leases = mine.checked, mine.leases(ME[number], rules.kind)
    is_owner = state.entry is not None and state.entry.holder == ME[number]
    entry = state.entry
    if rules.fenced:
        revision = state.next_revision() if entry and entry.revision == token else None
        leases.took(NAME, revision, 0.0)
        if revision is None:
            return state.put(number, mine.with_leases(leases)._replace(checked=None))
        entry = Entry(ME[number], revision)
    after = mine.with_leases(leases)._replace(checked=None)
    if rules.writes != "none":
        return state.put(number, after._replace(renewed=True), entry=entry)
    return state.put(number, after, entry=entry, stale=state.stale or not is_owner)


def takes_over(state: State, number: int, rules: Rules) -> State | None:
    """It holds the lease, reads what is stored and writes it once more in its own name."""
    mine = state.replicas[number]
    is_sure = NAME in mine.leases(ME[number], rules.kind).sure(0.0)
    if rules.writes == "none" or mine.knows or not (mine.is_idle and is_sure):
        return None
    return written(state, number, mine, taken_by=number)


def writes(state: State, number: int, rules: Rules) -> State | None:
    """However long after it has renewed its lease: between the two it may have been stopped."""
    mine = state.replicas[number]
    if not mine.renewed:
        return None
    after = mine._replace(renewed=False)
    if rules.writes == "conditional" and not mine.knows:
        return state.put(number, after)
    return written(state, number, after, stale=state.stale or state.taken_by not in (None, number))


def written(state: State, number: int, mine: Replica, **changes: object) -> State:
    """The store is at a new revision, which only the one that has written it knows."""
    state = state.put(1 - number, state.replicas[1 - number]._replace(knows=False))
    return state.put(number, mine._replace(knows=True), **changes)


ACTS = (looks, arrives, hears, checks, sends, takes_over, writes)


def following(state: State, rules: Rules) -> Iterator[State]:
    yield shifted(state, 1.0)
    for number in (0, 1):
        for act in ACTS:
            after = act(state, number, rules)
            if after is not None:
                yield shifted(after, 0.0)


def explored(rules: Rules) -> Iterator[State]:
    """Every state that can be reached, each once."""
    seen, todo = {State()}, deque([State()])
    while todo:
        state = todo.popleft()
        yield state
        for after in following(state, rules):
            if after not in seen:
                seen.add(after)
                todo.append(after)


def acting(state: State) -> list[str]:
    return [me for me, each in zip(ME, state.replicas, strict=True) if NAME in each.leases(me).sure(0.0)]


def test_two_never_act_on_one_lease_and_one_that_was_stopped_sends_nothing() -> None:
    """In every one of the states that can be reached, whoever is stopped wherever for however long."""
    states = list(explored(Rules()))
    assert len(states) > 5000
    assert not [state for state in states if len(acting(state)) > 1]
    assert not [state for state in states if state.stale]
    assert {me for state in states for me in acting(state)} == {"a", "b"}


def test_without_the_fence_one_that_was_stopped_after_it_had_looked_would_send() -> None:
    """The planted bug: the same search finds it. So looking at one's clock is not enough."""
    assert any(state.stale for state in explored(Rules(fenced=False)))


def test_a_write_after_the_renewal_may_come_when_another_has_taken_over() -> None:
    """The gap of every lease: stopped between the two, it writes what is no longer its own."""
    assert any(state.stale for state in explored(Rules(writes="after renewal")))


def test_a_write_that_names_what_it_was_made_from_never_does() -> None:
    """It is refused as soon as another owner has written what is stored in its own name."""
    states = list(explored(Rules(writes="conditional")))
    assert {state.taken_by for state in states} == {None, 0, 1}
    assert any(each.renewed and not each.knows for state in states for each in state.replicas)
    assert not [state for state in states if state.stale]


class Trusting(Leases):
    """The other planted bug: counts from the answer and not from the question."""

    def took(self, name: str, revision: int | None, asked: float) -> None:
        super().took(name, revision, 0.0)


def test_a_holder_that_counts_from_the_answer_is_caught() -> None:
    """An answer may be late, and then both act."""
    assert any(len(acting(state)) > 1 for state in explored(Rules(kind=Trusting)))


def test_a_lease_is_taken_renewed_and_given_back() -> None:
    """And by another only when it was seen unchanged for its whole length."""
    mine, other = Leases("a", 10.0), Leases("b", 10.0)
    mine.see(NAME, None, 0.0)
    assert mine.step(NAME, None, 0.0, wanted=True) == Take(0)
    mine.took(NAME, 5, 0.0)
    entry = Entry("a", 5)
    for now, step in ((1.0, None), (10.9, None), (11.0, Take(5))):
        other.see(NAME, entry, now)
        assert other.step(NAME, entry, now, wanted=True) == step
    assert mine.sure(7.4) == {NAME}
    assert mine.sure(7.5) == frozenset()
    mine.see(NAME, entry, 8.0)
    assert mine.step(NAME, entry, 8.0, wanted=True) == Take(5)
    assert mine.step(NAME, entry, 8.0, wanted=False) == GiveBack(5)
    assert other.step(NAME, Entry("", 6), 12.0, wanted=True) == Take(6)
    mine.see(NAME, Entry("b", 7), 13.0)
    assert mine.sure(8.0) == frozenset()


def followers(name: str, count: int, alive: list[str]) -> set[str]:
    return {me for me in alive if name in spread([name], count, alive, me)}


@given(
    alive=st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1),
    count=st.integers(1, 3),
    newcomer=st.sampled_from("xyz"),
    number=st.integers(0, 50),
)
def test_of_several_followers_one_at_most_changes_with_a_replica(
    alive: list[str], count: int, newcomer: str, number: int
) -> None:
    """As many as are wanted, or all there are; whoever comes or goes, the others go on."""
    name = f"eu1/{number}"
    before, after = followers(name, count, alive), followers(name, count, [*alive, newcomer])
    assert len(before) == min(count, len(alive))
    assert after - before <= {newcomer}
    assert len(before - after) <= 1
    assert len(before & after) >= min(count - 1, len(alive))


names = st.lists(st.sampled_from([f"s{n}" for n in range(12)]), unique=True)
replicas = st.lists(st.sampled_from("abcde"), unique=True, min_size=1)


@given(names=names, alive=replicas, held=st.dictionaries(st.sampled_from([f"s{n}" for n in range(12)]),
                                                         st.sampled_from("abcdefg")))  # fmt: skip
def test_shares_are_even_and_settle(names: list[str], alive: list[str], held: dict[str, str]) -> None:
    """After a few rounds all is held once, evenly, for good; nobody takes from the living."""
    holders = {name: held[name] for name in names if name in held}
    for _ in range(3):
        for me in alive:
            wanted = share(names, holders, alive, me)
            taken = {name for name in wanted if holders.get(name) != me}
            assert not {holders.get(name) for name in taken} & set(alive)
            holders = {name: by for name, by in holders.items() if by != me} | dict.fromkeys(wanted, me)
    counts = [list(holders.values()).count(me) for me in alive]
    assert sorted(holders) == sorted(names)
    assert max(counts) - min(counts) <= 1
    assert all(share(names, holders, alive, me) == {n for n in names if holders[n] == me} for me in alive)
