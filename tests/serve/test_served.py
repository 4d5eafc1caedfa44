"""A served model gives every client what the model gives alone: prompts, views, lengths, token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from conftest import PROMPTS, MakeModel
from moembed.embedder import Embedder
from moembed.encoding import View
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.serve.batching.limits import BatchLimits, Silent
from moembed.serve.errors import RequestError
from moembed.serve.served import Embedded, ServedModel
from moembed.serve.tokenizing import Truncate

T = TypeVar("T")
SMALL = BatchLimits(batch_seconds=1e9, batch_tokens=64)
HOW: tuple[Truncate, ...] = ("truncate", "chunk")
WHOLE = BatchLimits(batch_seconds=1e9, lanes=1)
LONG = " ".join(["the mole digs under the meadow"] * 20)


def serving(
    model: Embedder, use: Callable[[ServedModel], Awaitable[T]], limits: BatchLimits = SMALL, **options: Any
) -> T:
    """What ``use`` gives of a model that is served meanwhile."""

    async def life() -> T:
        served = ServedModel("mole", model, limits, **options)
        await served.start()
        try:
            return await asyncio.wait_for(use(served), 20)
        finally:
            await served.close()

    return asyncio.run(life())


def waiting(served: ServedModel) -> int:
    """Rows that are queued."""
    assert served._batcher is not None
    return served._batcher._queue.rows


def refused(model: Embedder, *arguments: Any, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        serving(model, lambda served: served.embed(*arguments, **options))
    return caught.value


def test_many_clients_get_the_vectors_that_each_would_get_alone(
    moe_model: Embedder, texts: list[str]
) -> None:
    asked = [
        ({"role": role, "view": View(layers, dim)}, [texts[i] for i in chosen])
        for role in (None, "query", "document")
        for layers, dim in ((None, None), (2, None), (None, 5))
        for chosen in ([0], [1, 2, 3], [7, 4, 4])
    ]

    async def use(served: ServedModel) -> list[Embedded]:
        requests = (
            served.embed(some, client=str(i % 4), **options) for i, (options, some) in enumerate(asked)
        )
        return await asyncio.gather(*requests)

    for (options, some), found in zip(asked, serving(moe_model, use), strict=True):
        offline = moe_model.vectors(some, **options)
        assert np.array_equal(found.array, offline.array), np.abs(found.array - offline.array).max()
        assert found.array.shape == offline.array.shape
        assert found.space == offline.space
        assert found.truncated == (0,) * len(some)
        assert found.tokens == sum(map(len, moe_model.rows(some, role=options["role"])[0]))


def test_prompts_left_out_of_pooling_stay_so_in_a_shared_batch(
    make_model: MakeModel, texts: list[str]
) -> None:
    model = make_model(max_positions=48)
    model.pooling.config = replace(model.pooling.config, include_prompt=False)
    prompts = ["", "query: ", "what does the mole do? "]

    async def use(served: ServedModel) -> list[Embedded]:
        return await asyncio.gather(*(served.embed(texts, prompt=prompt) for prompt in prompts))

    for prompt, found in zip(prompts, serving(model, use, WHOLE), strict=True):
        assert np.abs(found.array - model.vectors(texts, prompt=prompt).array).max() <= 1e-6


def test_a_text_that_is_too_long_is_refused_by_number_and_length(moe_model: Embedder) -> None:
    error = refused(moe_model, ["worms", LONG])
    length = len(next(moe_model.tokenizer.whole_rows([LONG])))
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "input")
    assert error.message == f"text 1 has {length} tokens, and this model reads 32"


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_text_is_the_one_that_the_model_cuts_and_what_is_lost_is_counted(
    side: Any, moe_model: Embedder
) -> None:
    moe_model.tokenizer.truncation_side = side
    found = serving(moe_model, lambda served: served.embed([LONG, "worms"], truncate="truncate"))
    assert np.abs(found.array - moe_model.vectors([LONG, "worms"]).array).max() <= 1e-6
    whole, short = moe_model.tokenizer.whole_rows([LONG, "worms"])
    assert found.truncated == (len(whole) - 32, 0)
    assert found.tokens == 32 + len(short)


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_the_pieces_of_a_long_text_are_weighted_by_their_tokens(prompt: str, moe_model: Embedder) -> None:
    found = serving(
        moe_model,
        lambda served: served.embed(
            ["worms", LONG, "moles"], prompt=prompt, truncate="chunk", view=View(dim=8)
        ),
    )
    (row,) = moe_model.tokenizer.whole_rows([LONG], prompt=prompt)
    head = 1 + (moe_model.tokenizer.prompt_tokens(prompt) - 1 if prompt else 0)
    body, room = row[head:-1], 32 - head - 1
    pieces = [body[start : start + room] for start in range(0, len(body), room)]
    rows = [[*row[:head], *piece, row[-1]] for piece in pieces]
    vectors = moe_model.embed(rows, View(dim=8))
    mean = sum(len(piece) * vector for piece, vector in zip(pieces, vectors, strict=True))
    assert len(pieces) > 2
    assert np.abs(found.array[1] - mean / np.linalg.norm(mean)).max() <= 1e-6
    short = moe_model.vectors(["worms", "moles"], prompt=prompt, view=View(dim=8)).array
    assert np.abs(found.array[[0, 2]] - short).max() <= 1e-6
    assert found.truncated == (0, 0, 0)
    assert found.tokens == sum(map(len, rows)) + sum(
        map(len, moe_model.rows(["worms", "moles"], prompt=prompt)[0])
    )


def test_a_prompt_that_leaves_no_room_for_text_is_refused(moe_model: Embedder) -> None:
    error = refused(moe_model, ["worms"], prompt=LONG, truncate="chunk")
    assert (error.status, error.param) == (400, "prompt")
    assert "no room is left" in error.message


def test_token_ids_are_texts_with_or_without_their_special_tokens(
    moe_model: Embedder, texts: list[str]
) -> None:
    whole = serving(moe_model, lambda served: served.tokenize(texts))
    assert whole == moe_model.rows(texts)[0]
    expected = moe_model.vectors(texts).array
    for ids in (whole, [row[1:-1] for row in whole]):
        found = serving(moe_model, lambda served, ids=ids: served.embed(ids))
        assert np.abs(found.array - expected).max() <= 1e-6
        assert found.tokens == sum(map(len, whole))


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        ([[5], [5, 100_277]], {}, r"input 1 holds 100277, which is no token id of this model"),
        ([[-1]], {}, "input 0 holds -1"),
        ([[True]], {}, "input 0 holds True"),
        ([[1.0]], {}, r"input 0 holds 1\.0"),
        ([[5], "worms"], {}, "texts and token ids cannot be mixed"),
        ([[5]], {"role": "query"}, "the prompt 'query: ' and token ids cannot be mixed"),
        (["worms", "half \ud800"], {}, "text 1 is not valid Unicode"),
        (["worms"], {"prompt": "\udfff"}, "not valid Unicode"),
        (["worms"], {"view": View(dim=17)}, r"dim 17 is not within 1\.\.16"),
        (["worms"], {"view": View(layers=9)}, r"layers 9 is not within 1\.\.4"),
    ],
)
def test_what_the_model_cannot_read_is_refused_in_a_sentence(
    inputs: Any, options: dict[str, Any], said: str, moe_model: Embedder
) -> None:
    error = refused(moe_model, inputs, **options)
    assert error.status == 400
    assert error.param in ("input", "prompt", "dimensions")
    with pytest.raises(RequestError, match=said):
        raise error


def test_no_text_gives_no_vector(moe_model: Embedder) -> None:
    found = serving(moe_model, lambda served: served.embed([], view=View(dim=4)))
    assert found.array.shape == (0, 4)
    assert found.tokens == 0


def test_a_long_text_and_many_texts_are_tokenized_as_always(moe_model: Embedder, texts: list[str]) -> None:
    many = [*texts, LONG * 60, *texts * 300, "owls"]
    assert serving(moe_model, lambda served: served.tokenize(many, role="query")) == list(
        moe_model.tokenizer.whole_rows(many, prompt="query: ")
    )


def test_dims_are_those_the_model_was_trained_for(make_model: MakeModel) -> None:
    model = make_model()
    model.dims = (4, 8, 16, 32)
    assert ServedModel("mole", model).dims == (4, 8, 16)
    model.dim = 8
    assert ServedModel("mole", model).dims == (4, 8)


def test_the_load_of_the_experts_and_cut_texts_are_told(make_model: MakeModel, texts: list[str]) -> None:
    model = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2)))
    loads: list[Mapping[int, Sequence[int]]] = []
    cut: list[tuple[int, int]] = []

    class Observer(Silent):
        def expert_load(self, counts: Mapping[int, Sequence[int]]) -> None:
            loads.append(counts)

        def truncated(self, texts: int, tokens: int) -> None:
            cut.append((texts, tokens))

    async def use(served: ServedModel) -> Embedded:
        loads.clear()  # of the warm-up
        await served.embed([*texts, LONG], truncate="truncate", view=View(layers=1))
        loads.clear()
        return await served.embed([*texts, LONG], truncate="truncate")

    found = serving(model, use, WHOLE, observer=Observer())
    assert [list(counts) for counts in loads] == [[1, 3]]
    assert all(len(counts) == 4 and sum(counts) == 2 * found.tokens for counts in loads[0].values())
    assert cut == [(1, found.truncated[-1])] * 2


def test_a_model_that_fails_says_nothing_of_its_inside(
    moe_model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(served: ServedModel) -> None:
        def embed(*_: Any, **__: Any) -> np.ndarray:
            raise RuntimeError("secret")

        monkeypatch.setattr(moe_model, "embed", embed)
        await served.embed(["worms"])

    with pytest.raises(RequestError) as caught:
        serving(moe_model, use)
    assert caught.value.status == 500
    assert "secret" not in caught.value.message


def test_a_vector_that_is_not_finite_fails_with_the_number_of_its_text(
    moe_model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = moe_model.embed

    def with_nan(rows: list[list[int]], *arguments: Any, **options: Any) -> np.ndarray:
        found = embed(rows, *arguments, **options)
        found[[len(row) == 32 for row in rows]] = np.nan  # pieces of the long text
        return found

    async def use(served: ServedModel) -> Embedded:
        monkeypatch.setattr(moe_model, "embed", with_nan)
        await served.embed(["owls"])
        return await served.embed(["worms", LONG], truncate="chunk")

    with pytest.raises(RequestError, match="gave text 1 a vector that is not finite"):
        serving(moe_model, use)


def test_a_client_that_leaves_takes_its_rows_along(moe_model: Embedder, texts: list[str]) -> None:
    async def use(served: ServedModel) -> tuple[int, Embedded]:
        task = asyncio.create_task(served.embed(texts * 500))
        while not waiting(served):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return waiting(served), await served.embed(texts)

    left, found = serving(moe_model, use)
    assert left == 0
    assert np.abs(found.array - moe_model.vectors(texts).array).max() <= 1e-6


def test_draining_answers_what_is_at_hand_and_refuses_what_is_new(
    moe_model: Embedder, texts: list[str]
) -> None:
    async def use(served: ServedModel) -> tuple[Embedded, list[bool]]:
        ready = [served.ready]
        task = asyncio.create_task(served.embed(texts * 50))
        await asyncio.sleep(0)
        drain = asyncio.create_task(served.drain(20))
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as caught:
            await served.embed(texts)
        assert caught.value.status == 503
        await drain
        assert task.done()
        return task.result(), [*ready, served.ready]

    found, ready = serving(moe_model, use)
    assert len(found.array) == 50 * len(texts)
    assert ready == [True, False]


def test_draining_does_not_wait_longer_than_it_may(moe_model: Embedder, texts: list[str]) -> None:
    async def use(served: ServedModel) -> None:
        task = asyncio.create_task(served.embed(texts * 2000))
        await asyncio.sleep(0)
        await served.drain(0.001)
        await served.close()
        await task

    with pytest.raises(RequestError, match="shutting down"):
        serving(moe_model, use)


def test_too_much_that_waits_is_refused(moe_model: Embedder, texts: list[str]) -> None:
    async def use(served: ServedModel) -> list[Embedded | BaseException]:
        return await asyncio.gather(*(served.embed(texts * 40) for _ in range(8)), return_exceptions=True)

    found = serving(moe_model, use, replace(SMALL, queue_tokens=300))
    errors = [one for one in found if isinstance(one, RequestError)]
    assert errors
    assert {error.status for error in errors} == {429}
    assert any(isinstance(one, Embedded) for one in found)


def test_a_text_that_is_tokenized_for_long_keeps_nobody_out(moe_model: Embedder) -> None:
    async def use(served: ServedModel) -> list[Embedded]:
        long = [asyncio.create_task(served.embed([LONG * 60], truncate=how)) for how in ("truncate", "chunk")]
        await asyncio.sleep(0)
        short = await served.embed(["worms"], client="another")
        return [short, *await asyncio.gather(*long)]

    short, cut, pieces = serving(moe_model, use, replace(WHOLE, queue_tokens=200))
    assert np.array_equal(short.array, moe_model.vectors(["worms"]).array)
    assert cut.tokens == 32
    assert pieces.truncated == (0,)
    assert pieces.tokens > cut.truncated[0] > 5_000


def test_the_prompts_are_those_of_the_model(moe_model: Embedder) -> None:
    def tokens(role: str) -> list[list[int]]:
        return serving(moe_model, lambda served: served.tokenize(["worms"], role=role))

    for role, prompt in PROMPTS.items():
        assert tokens(role) == moe_model.tokenizer.rows([prompt + "worms"])[0]
