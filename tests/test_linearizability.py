"""The checker of histories finds what is planted, and nothing where there is nothing."""

from __future__ import annotations

from itertools import combinations, permutations
from math import inf
from random import Random

import pytest

from tests.linearizability import Call, conflicts


def add(claim: str, called: float, answered: float = inf, *addresses: str) -> Call:
    return Call("ADD", claim, called, answered, addresses)


def delete(claim: str, called: float, answered: float = inf) -> Call:
    return Call("DEL", claim, called, answered)


FINE = {
    "one after the other": [add("a", 1, 2, "x"), delete("a", 3, 4), add("b", 5, 6, "x")],
    "given on while the DEL is under way": [add("a", 1, 2, "x"), delete("a", 3, 9), add("b", 4, 5, "x")],
    "given on before the DEL is answered, if ever": [add("a", 1, 2, "x"), delete("a", 3), add("b", 4, 5, "x")],
    "both under way at once, and a DEL that may come between": [
        add("a", 1, 9, "x"), delete("a", 2, 9), add("b", 1, 5, "x"),
    ],
    "an ADD that nobody knows about": [add("a", 1, 2, "x"), add("b", 1), delete("b", 5)],
    "a refused ADD": [add("a", 1, 2, "x"), add("b", 3, 4)],
    "a repeated ADD": [add("a", 1, 2, "x"), add("a", 3, 4, "x"), delete("a", 5, 6), add("b", 7, 8, "x")],
    "a DEL that was lost may end what is given later": [
        delete("a", 0), add("a", 1, 2, "x"), add("b", 3, 4, "x"),
    ],
    "another address": [add("a", 1, 2, "x"), add("b", 1, 2, "y")],
    "an address of each family": [add("a", 1, 2, "10.0.0.1", "fd00::1"), add("a", 3, 4, "10.0.0.1", "fd00::1")],
    "they touch": [add("a", 1, 2, "x"), delete("a", 3, 4), add("b", 2, 3, "x")],
    "a moment at an edge": [add("a", 1, 5, "x"), add("b", 2, 8, "x"), delete("b", 4, 9)],
}  # fmt: skip
IMPOSSIBLE = {
    "two hold it": [add("a", 1, 2, "x"), add("b", 3, 4, "x")],
    "two hold it, told in the other order": [add("b", 3, 4, "x"), add("a", 1, 2, "x")],
    "the DEL came too late": [add("a", 1, 2, "x"), add("b", 3, 4, "x"), delete("a", 5, 6)],
    "the DEL was of an earlier hold": [
        add("a", 1, 2, "x"), delete("a", 3, 4), add("a", 5, 6, "x"), add("b", 7, 8, "x"), delete("a", 9, 10),
    ],
    "somebody else's DEL": [add("a", 1, 2, "x"), delete("c", 3, 4), add("b", 5, 6, "x")],
    "the second was under way for long": [add("a", 1, 2, "x"), add("b", 0, 9, "x")],
    "a moment inside": [add("a", 1, 2, "x"), add("b", 3, 8, "x"), delete("b", 4, 9), delete("a", 10, 11)],
    "a third lets go and the second does not": [
        add("a", 1, 2, "x"), add("b", 20, 21, "x"), delete("b", 22, 23), delete("a", 5, 6), add("c", 7, 8, "x"),
    ],
    "a long one behind a short one": [
        add("a", 1, 2, "x"), add("b", 2.4, 2.5, "y"), add("c", 3, 4, "x"), delete("c", 4, 5), add("d", 6, 7, "x"),
    ],
    "one of several addresses": [add("a", 1, 2, "10.0.0.1", "fd00::1"), add("b", 3, 4, "10.0.0.2", "fd00::1")],
    "one claim, two addresses": [add("a", 1, 2, "x"), add("a", 3, 4, "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_can_be_true_is_not_called_impossible(name: str) -> None:
    assert conflicts(FINE[name]) == []


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_true_is_found(name: str) -> None:
    for order in permutations(IMPOSSIBLE[name]):
        assert conflicts(order)


def test_a_conflict_names_both() -> None:
    [found] = conflicts(IMPOSSIBLE["two hold it"])
    assert [(hold.claim, hold.address, hold.since, hold.until) for hold in found] == [
        ("a", "x", 2, inf),
        ("b", "x", 4, inf),
    ]


# Against all that can have happened ---------------------------------------------------------------


def a_true_history(random: Random) -> list[Call]:
    """Holds that follow each other, seen by clients from outside: earlier calls, later answers, some never told."""
    history, now = [], 0.0
    for number in range(random.randint(2, 5)):
        took = now = now + random.random()
        gone = now = now + random.random()
        told = random.random() < 0.8
        early, late = random.random() * 2, random.random() * 2
        claim = f"c{number}"
        history.append(add(claim, took - early, took + late, "x") if told else add(claim, took - early))
        answered = gone + random.random() * 2 if random.random() < 0.8 else inf
        history.append(delete(claim, gone - random.random() * 2, answered))
    return history


def possible(history: list[Call]) -> bool:
    """By trying every order of the holds: each takes its earliest moments that the one before leaves it."""
    adds = [call for call in history if call.verb == "ADD" and call.addresses]
    ends = {call.claim: call for call in history if call.verb == "DEL"}

    def fits(order: tuple[Call, ...]) -> bool:
        now = -inf
        for call in order:
            start = max(now, call.called)
            if start > call.answered:
                return False
            end = ends.get(call.claim)
            now = max(start, end.called) if end and end.answered >= call.called else inf
        return True

    return any(fits(order) for order in permutations(adds))


def shifted(history: list[Call], random: Random) -> list[Call]:
    """The same with one call at another time, or one DEL never called."""
    history = list(history)
    place = random.randrange(len(history))
    call = history.pop(place)
    if call.verb == "ADD":
        by = random.uniform(-3, 3)
        history.insert(place, Call(call.verb, call.claim, call.called + by, call.answered + by, call.addresses))
    return history


def test_true_histories_pass_and_changed_ones_are_judged_as_trying_every_order_does() -> None:
    random = Random(4)
    judged = {True: 0, False: 0}
    for _ in range(3_000):
        history = a_true_history(random)
        assert conflicts(history) == []
        changed = shifted(history, random)
        verdict = possible(changed)
        assert (conflicts(changed) == []) == verdict, changed
        judged[verdict] += 1
    assert min(judged.values()) > 300, judged


def test_an_overlap_planted_in_a_long_history_is_the_only_one_found() -> None:
    random = Random(5)
    history: list[Call] = []
    for address in range(50):
        now = 0.0
        for turn in range(40):
            claim = f"{address}/{turn}"
            history += [add(claim, now, now + 2, f"x{address}"), delete(claim, now + 5, now + 9)]
            now += random.uniform(5, 9)
    assert conflicts(history) == []
    victim = next(call for call in history if call.claim == "17/20" and call.verb == "ADD")
    thief = add("thief", victim.answered + 1, victim.answered + 2, "x17")
    end = delete("thief", victim.answered + 2.5, victim.answered + 3)
    random.shuffle(history)
    [found] = conflicts([*history, thief, end])
    assert {hold.claim for hold in found} == {"17/20", "thief"}


def test_pairs_are_told_once() -> None:
    three = [add(claim, number, number + 0.5, "x") for number, claim in enumerate("abc")]
    found = {frozenset(hold.claim for hold in pair) for pair in conflicts(three)}
    assert found == {frozenset(pair) for pair in combinations("abc", 2)}
    assert len(conflicts(three)) == 3
