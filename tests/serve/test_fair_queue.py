"""Who is next: every part once, bounded batches, turns by tokens, nothing overtaken for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from moembed.serve.batching.queue import FairQueue, Part, cut

AGE = 0.1
lengths = st.lists(st.integers(0, 60), min_size=1, max_size=12)


def put(queue: FairQueue, client: str, row_lengths: list[int], arrived: float = 0.0, group: int = 0) -> str:
    """A request whose name says whose it is and when it came."""
    request = f"{client}@{arrived}"
    queue.put(client, cut(request, row_lengths, queue.quantum, AGE, arrived, group))
    return request


def emptied(queue: FairQueue, tokens: int) -> list[list[Part]]:
    batches = []
    while queue:
        batches.append(queue.take(tokens))
    return batches


@given(lengths, st.integers(1, 40))
def test_a_request_is_cut_into_parts_that_hold_every_row_once(row_lengths: list[int], tokens: int) -> None:
    parts = cut("one", row_lengths, tokens, AGE, 5.0)
    assert sorted(place for part in parts for place in part.places) == list(range(len(row_lengths)))
    for part in parts:
        assert part.tokens == sum(max(1, row_lengths[place]) for place in part.places)
        assert part.tokens <= tokens or len(part.places) == 1
    assert [round(part.due - 5.0, 6) for part in parts] == [
        round(AGE * (1 + i), 6) for i in range(len(parts))
    ]
    sizes = [row_lengths[place] for part in parts for place in part.places]
    assert sizes == sorted(sizes, reverse=True)  # like lengths together


@given(
    st.lists(st.tuples(st.sampled_from("abc"), lengths, st.integers(0, 1)), max_size=12), st.integers(8, 80)
)
def test_every_part_is_taken_once_and_batches_are_bounded(
    requests: list[tuple[str, list[int], int]], tokens: int
) -> None:
    queue = FairQueue(quantum=max(1, tokens // 4))
    for number, (client, row_lengths, group) in enumerate(requests):
        put(queue, client, row_lengths, float(number), group)
    expected = sum(len(row_lengths) for _, row_lengths, _ in requests)
    assert queue.rows == expected
    batches = emptied(queue, tokens)
    taken = [(part.request, place) for batch in batches for part in batch for place in part.places]
    assert len(taken) == len(set(taken)) == expected
    for batch in batches:
        assert batch
        assert len({part.group for part in batch}) == 1
        assert len(batch) == 1 or sum(part.tokens for part in batch) <= tokens
    assert (queue.tokens, queue.rows) == (0, 0)


@given(st.lists(st.integers(1, 8), min_size=2, max_size=5), st.integers(16, 64))
def test_clients_that_wait_get_as_many_tokens_as_each_other(sizes: list[int], tokens: int) -> None:
    """Whatever the lengths of their texts; Shreedhar and Varghese bound the difference."""
    queue, quantum, largest = FairQueue(quantum=tokens // 4), tokens // 4, max(sizes)
    for number, size in enumerate(sizes):
        put(queue, f"client {number}", [size] * 300)
    given_tokens: Counter[str] = Counter({f"client {number}@0.0": 0 for number in range(len(sizes))})
    for _ in range(8):
        for part in queue.take(tokens):
            given_tokens[part.request] += part.tokens
        # one turn apart, and what room was left over at the end of a batch
        assert max(given_tokens.values()) - min(given_tokens.values()) <= 2 * (quantum + largest)


def test_a_small_request_overtakes_the_later_parts_of_a_large_one_but_none_that_is_due() -> None:
    queue = FairQueue(quantum=10)
    large = put(queue, "a", [10] * 6, arrived=0.0)  # parts due at 0.1, 0.2, ... 0.6
    small = put(queue, "a", [2], arrived=0.25)  # due at 0.35
    order = [batch[0].request for batch in emptied(queue, 10)]
    assert order == [large, large, large, small, large, large, large]


def test_a_client_does_not_wait_for_the_queue_of_another() -> None:
    queue = FairQueue(quantum=10)
    put(queue, "bulk", [10] * 50, arrived=0.0)
    asked = put(queue, "person", [3], arrived=9.0)
    assert asked in [part.request for part in queue.take(40)]


def test_who_was_passed_over_begins_the_next_batch() -> None:
    queue = FairQueue(quantum=40)
    first, second = put(queue, "a", [30], 0.0), put(queue, "b", [30], 0.0)
    third = put(queue, "c", [10], 0.0)
    assert [part.request for part in queue.take(40)] == [first, third]
    put(queue, "d", [40], 0.0)
    assert queue.take(40)[0].request == second


def test_a_text_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    queue = FairQueue(quantum=5)
    put(queue, "a", [100, 3])
    put(queue, "b", [4])
    batches = emptied(queue, 20)
    assert [part.tokens for part in batches[0]] == [100] or [part.tokens for part in batches[1]] == [100]
    assert sum(part.tokens for batch in batches for part in batch) == 107


def test_what_is_removed_is_not_taken() -> None:
    queue = FairQueue(quantum=10)
    gone, kept = put(queue, "a", [10] * 5, 0.0), put(queue, "a", [4, 3], 1.0)
    alone = put(queue, "b", [6], 1.0)
    assert queue.remove("a", gone) == 5
    assert queue.remove("a", gone) == queue.remove("nobody", gone) == 0
    assert (queue.tokens, queue.rows, queue.tokens_of("a")) == (13, 3, 7)
    assert queue.remove("b", alone) == 1
    assert queue.tokens_of("b") == 0
    assert {part.request for batch in emptied(queue, 20) for part in batch} == {kept}
