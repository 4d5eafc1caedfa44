"""Clients that exist talk to the server as they are: openai, LangChain, LlamaIndex and huggingface_hub."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from conftest import MakeModel
from live_server import live
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE

KEY = "a-key"
LONG = "the mole digs tunnels under the meadow " * 20


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Embedder:
    made = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4))
    made.dims = (8, 16)
    return made


@pytest.fixture(scope="module")
def url(model: Embedder) -> Iterator[str]:
    with live(model, api_keys=(KEY,)) as address:
        yield address


def same(found: object, expected_NM: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected_NM, atol=1e-6)


# ---- openai ------------------------------------------------------------------------------------------------


def test_openai_with_one_text_several_and_fewer_dimensions(
    url: str, model: Embedder, texts: list[str]
) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        # base64, which the client asks for and decodes
        reply = client.embeddings.create(model="demo", input=texts)
        same([row.embedding for row in reply.data], model.encode(texts))
        assert [row.index for row in reply.data] == list(range(len(texts)))
        assert reply.usage.total_tokens == reply.usage.prompt_tokens == sum(model.num_tokens(texts))
        assert (reply.object, reply.model, reply.data[0].object) == ("list", "demo", "embedding")
        # numbers, one text, a smaller size
        floats = client.embeddings.create(model="demo", input="an owl", encoding_format="float", dimensions=8)
        same(floats.data[0].embedding, model.encode("an owl", dim=8))
        # our own fields
        query = client.embeddings.create(model="demo", input=["an owl"], extra_body={"input_type": "query"})
        same(query.data[0].embedding, model.encode_query("an owl"))
        names = [one.id for one in client.models.list()]
        assert names == ["demo"] == [client.models.retrieve("demo").id]


def test_openai_with_token_ids(url: str, model: Embedder, texts: list[str]) -> None:
    openai = pytest.importorskip("openai")
    rows, _ = model.rows(texts)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        same(
            [row.embedding for row in client.embeddings.create(model="demo", input=rows).data],
            model.encode(texts),
        )
        same(client.embeddings.create(model="demo", input=rows[0]).data[0].embedding, model.encode(texts[0]))


def test_openai_names_its_own_errors(url: str) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="dimensions 5") as caught:
            client.embeddings.create(model="demo", input="owl", dimensions=5)
        assert (caught.value.param, caught.value.type) == ("dimensions", "invalid_request_error")
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="other", input="owl")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            client.embeddings.create(model="demo", input=["owl", LONG])
        assert long.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.embeddings.create(model="demo", input="owl")


def test_openai_many_at_once(url: str, model: Embedder) -> None:
    openai = pytest.importorskip("openai")
    texts = [f"mole {n} eats worms" for n in range(24)]

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            calls = [client.embeddings.create(model="demo", input=text) for text in texts]
            return [reply.data[0].embedding for reply in await asyncio.gather(*calls)]

    same(asyncio.run(ask()), model.encode(texts))


# ---- frameworks --------------------------------------------------------------------------------------------


def test_langchain(url: str, model: Embedder, texts: list[str]) -> None:
    """Without its own cutting, which sends the token ids of another model (docs/serving.md)."""
    pytest.importorskip("tiktoken")
    langchain_openai = pytest.importorskip("langchain_openai")
    embeddings = langchain_openai.OpenAIEmbeddings(
        model="demo", base_url=f"{url}/v1", api_key=KEY, check_embedding_ctx_length=False, chunk_size=3
    )
    same(embeddings.embed_documents(texts), model.encode(texts))
    same(embeddings.embed_query("an owl"), model.encode("an owl"))
    same(asyncio.run(embeddings.aembed_documents(texts)), model.encode(texts))
    small = langchain_openai.OpenAIEmbeddings(
        model="demo", base_url=f"{url}/v1", api_key=KEY, check_embedding_ctx_length=False, dimensions=8
    )
    same(small.embed_query("an owl"), model.encode("an owl", dim=8))


def test_llama_index(url: str, model: Embedder, texts: list[str]) -> None:
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    embedding = module.OpenAILikeEmbedding(
        model_name="demo", api_base=f"{url}/v1", api_key=KEY, embed_batch_size=3, max_retries=1
    )
    some = [text for text in texts if text]
    same(embedding.get_text_embedding_batch(some), model.encode(some))
    same(embedding.get_query_embedding("an owl"), model.encode("an owl"))


def test_huggingface_hub_on_the_routes_of_tei(
    url: str, model: Embedder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it would refuse loopback, too
    client = InferenceClient(model=f"{url}/embed", api_key=KEY)
    same(client.feature_extraction(texts), model.encode(texts))
    same(client.feature_extraction("an owl"), model.encode(["an owl"]))
    same(
        client.feature_extraction("an owl", prompt_name="query", dimensions=8),
        model.encode_query(["an owl"], dim=8),
    )
    same(client.feature_extraction(LONG, truncate=True), model.vectors([LONG]).array)
    with pytest.raises(HfHubHTTPError):
        client.feature_extraction(LONG, truncate=False)
    similar = InferenceClient(model=f"{url}/similarity", api_key=KEY)
    cosines = similar.sentence_similarity("an owl", other_sentences=["moles", "owls"])
    same(cosines, model.similarity(model.encode(["an owl"]), model.encode(["moles", "owls"]))[0])
