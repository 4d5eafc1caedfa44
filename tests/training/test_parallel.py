"""Two processes compute what one computes: losses, gradients, statistics, steps and whole runs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.training.contrastive.batch import SourceFormat, prepare, with_items
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.monitors.budget import Deadline
from moembed.training.monitors.retrieval import RetrievalMonitor, load_tasks
from moembed.training.parallel import ALONE, World, current, joined, summed, unsummed
from moembed.training.task import Terms
from moembed.types import Pair, UserError
from training_runs import assert_same_weights, checkpoints, interrupt_at, metrics, run, save_animals, settings

SIZE = 2
PAIRS = [  # an odd number of them, so that the shares differ
    Pair("what does a mole eat?", "moles eat worms", ("an owl hunts voles at night", "worms")),
    Pair("where do owls live?", "the owl is in the meadow at night"),
    Pair("what do they hunt?", "an owl hunts voles at night", ("the mole digs",)),
    Pair("where do owls live?", "owls live under the night", ("owls live under the night",)),
    Pair("do worms live long?", "the meadow is wide and the night is long, and the owl is patient"),
]
LOSS = {"balance": 0.7, "z": 0.1, "temperature": 0.1}
STEPS: dict[str, dict[str, Any]] = {
    "one chunk": {"loss": LOSS},
    "chunks": {"loss": LOSS, "chunk_tokens": 25},
    "matryoshka": {"loss": LOSS | {"matryoshka": {"dims": [16, 8], "weights": [1, 0.5]}}, "chunk_tokens": 25},
    "depths": {"loss": LOSS | {"depths": {2: 0.5, 4: 1}}, "chunk_tokens": 25},
    "symmetric": {"loss": LOSS | {"kind": "symmetric_info_nce"}, "chunk_tokens": 25},
    "learned temperature": {"loss": LOSS | {"learn_temperature": True}, "chunk_tokens": 40},
    "masks, weights, mixing": {
        "loss": LOSS | {
            "mask": {"margin": 0.1}, "mixing": {"kind": "pair", "parents": 3, "columns": 2},
            "weight": [{"kind": "focal", "gamma": 0.5}, {"kind": "hardness", "alpha": 5}],
        },
        "chunk_tokens": 25,
    },
    "own negatives alone": {
        "loss": LOSS | {"in_batch": False, "mixing": {"kind": "list", "parents": 3}}, "chunk_tokens": 25,
    },
    "further terms": {
        "loss": LOSS | {
            "directions": ["query_to_query", "document_to_document"],
            "weight": {"kind": "margin", "alpha": 1, "width": 0.1},
            "matryoshka": {"dims": [16, 8]}, "learn_temperature": "per_dim",
        },
        "chunk_tokens": 25,
    },
    "signs": {"loss": LOSS | {"binary": {"bits": 12, "balance": 0.5}}, "chunk_tokens": 25},
    "triplet": {"loss": {"balance": 0.7, "z": 0.1, "kind": "triplet"}, "chunk_tokens": 25},
    "item pairs": {"loss": LOSS, "chunk_tokens": 25, "item_pairs": {"teacher": "chance", "dim": 6}},
    "low rank": {"loss": LOSS, "lora": {"rank": 2}, "chunk_tokens": 25},
}  # fmt: skip
RUN = {
    "batch_size": 7,
    "loss": LOSS | {"balance_window": 3, "bias_rate": 0.01},
    "held_out": 0.2,
    "evaluate_every": 2,
    # the key biases have a gradient of rounding errors alone, which a smaller eps would blow up to full steps
    "optim": {"learning_rate": 5e-3, "warmup_steps": 2.0, "eps": 1e-3},
}

Result = tuple[Terms, dict[str, torch.Tensor], dict[str, Any]]


def one_step(folder: Path, changes: dict[str, Any], world: World) -> Result:
    """Loss terms and statistics, every gradient, and the routing by role."""
    model = Embedder.from_pretrained(folder / "model", device="cpu").train()
    if "item_pairs" in changes:
        changes = changes | {"item_pairs": changes["item_pairs"] | {"teacher": str(folder / "chance")}}
    config = ContrastiveConfig.model_validate({"steps": 1, "batch_size": 5, "precision": "float32"} | changes)
    form = SourceFormat("query", "document", config.loss.kind)
    batch = prepare(PAIRS, form, model.tokenizer, config, world)
    task = ContrastiveTask(config, model, Mixture([Source.from_pairs("some", PAIRS)]), world)
    if task.items:
        batch = with_items(batch, task.items, None)
    terms = task.backward(0, batch)
    gradients = {name: p.grad for name, p in task.module.named_parameters() if p.grad is not None}
    return terms, gradients, task.probe.summary()


def whole_runs(folder: Path, out: Path) -> None:
    """A run, and one that is cut after four steps and goes on."""
    model = lambda name: Embedder.from_pretrained(folder / name, device="cpu")  # noqa: E731
    run(settings(steps=4, **RUN, **looked_at(folder)), model("model"), out / "plain")
    run(settings(steps=4), model("chance"), out / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(4, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings(steps=4), model("chance"), out / "cut")
    run(settings(steps=4), model("chance"), out / "cut", resume=True)


class Switched(torch.nn.Module):
    """Some of its layers are used at a time, as experts are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(4)])

    def forward(self, hidden_TD: torch.Tensor, chosen: tuple[int, ...]) -> torch.Tensor:
        for layer in chosen:
            hidden_TD = self.layers[layer](hidden_TD)
        return hidden_TD


USED = [[(0, 1), (0,)], [(0, 2)]]  # by process, in each of its chunks; the last layer is used by nobody


def switched_gradients(rank: int, world: World) -> list[torch.Tensor | None]:
    """Gradients of two chunks of one process and one of the other; of all of them where there is one."""
    torch.manual_seed(1)
    module = Switched()
    parallel = summed(module, world)
    for step in range(2):
        module.zero_grad()
        mine = [USED[rank]] if world.size > 1 else USED
        chunks = [chosen for some in mine for chosen in some]
        for number, chosen in enumerate(chunks):
            last = number == len(chunks) - 1
            with contextlib.nullcontext() if last else unsummed(parallel):
                parallel(torch.full((1, 2), float(step)), chosen).sum().backward()
    return [parameter.grad for parameter in module.parameters()]


def looked_at(folder: Path) -> dict[str, Any]:
    """An odd number of queries, so that the shares differ."""
    return {"evaluate": {"tasks": str(folder / "animals"), "every_steps": 2, "queries": 23}}


def scores(folder: Path, world: World) -> dict[str, float]:
    """What a model that is not trained scores."""
    config = ContrastiveConfig.model_validate({"steps": 1} | looked_at(folder))
    model = Embedder.from_pretrained(folder / "model", device="cpu").train()
    assert config.evaluate
    evaluation = RetrievalMonitor(config.evaluate, config, load_tasks(config.evaluate), model, world)
    evaluation.plan()
    found: dict[str, float] = evaluation.scores()["evaluation"]
    return found


def late_in_one_process(rank: int, folder: Path) -> None:
    """The budget of the second process is spent at once, the first has all the time there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrievalMonitor, "_speed", lambda self, task: 1e9)
        patch.setattr(Deadline, "passed", 1e9 * rank)
        config = settings(steps=3, evaluate=looked_at(folder)["evaluate"])
        run(config, Embedder.from_pretrained(folder / "model", device="cpu"), folder / "two" / "late")


def work(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    store = dist.FileStore(str(folder / "rendezvous"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    torch.set_num_threads(1)
    world = current()
    found = {name: one_step(folder, changes, world) for name, changes in STEPS.items()}
    said = [world.collect(rank), world.broadcast(rank)]
    torch.save([found, switched_gradients(rank, world), *said], folder / f"{rank}.pt")
    (folder / f"scores-{rank}.json").write_text(json.dumps(scores(folder, world)))
    whole_runs(folder, folder / "two")
    late_in_one_process(rank, folder)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything two processes made, in one start of them."""
    folder = tmp_path_factory.mktemp("distributed")
    for name, jitter in (("model", 0.0), ("chance", 0.2)):
        router = RouterConfig(jitter=jitter, selection_bias=name == "model")
        moe = FlatMoE(layers=(1, 3), num_experts=4, router=router)
        make_model(moe=moe, dropout=jitter).save_pretrained(folder / name)
    save_animals(folder / "animals")
    torch.multiprocessing.spawn(work, (folder,), nprocs=SIZE)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_two_processes_is_that_of_one(name: str, folder: Path, results: list[Any]) -> None:
    """Hard negatives, a duplicate mask, uneven shares; fp32 sums in another order."""
    terms, gradients, roles = one_step(folder, STEPS[name], ALONE)
    for found, *_ in results:
        its_terms, its_gradients, its_roles = found[name]
        assert its_terms.log["info_nce"] == pytest.approx(terms.log["info_nce"], rel=1e-5)
        assert its_terms.log.get("item_pairs", 0) == pytest.approx(terms.log.get("item_pairs", 0), rel=1e-4)
        assert its_terms.log["router_loss"] == pytest.approx(terms.log["router_loss"], rel=1e-5)
        for one, other in zip(terms.router, its_terms.router, strict=True):
            assert (one.layer, one.tokens) == (other.layer, other.tokens)
            assert torch.equal(one.count_E, other.count_E)
        assert its_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(its_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)
        assert its_roles == roles


def test_a_gradient_that_one_process_lacks_is_the_others_and_one_that_none_has_stays_none(
    results: list[Any],
) -> None:
    alone = switched_gradients(0, ALONE)
    assert [gradient is None for gradient in alone] == [False] * 6 + [True] * 2
    for _, found, *_ in results:
        for one, other in zip(alone, found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(other, one)
    assert [said for _, _, *said in results] == [[[0, 1], 0]] * SIZE


def test_a_run_of_two_processes_is_that_of_one(folder: Path, tmp_path: Path) -> None:
    """Optimiser, running counts, router biases, held-out loss, scores; only the first process writes."""
    config = settings(steps=4, **RUN, **looked_at(folder))
    run(config, Embedder.from_pretrained(folder / "model", device="cpu"), tmp_path)
    assert len(metrics(tmp_path)) == 4
    for one, two in zip(metrics(tmp_path), metrics(folder / "two" / "plain"), strict=True):
        for key in ("loss", "info_nce", "router_loss", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=1e-4), key
        assert one.get("held_out", {}) == pytest.approx(two.get("held_out", {}), rel=1e-4)
        assert one.get("evaluation", {}) == pytest.approx(two.get("evaluation", {}), rel=1e-6)
        for key in ("step", "tokens", "truncated", "pairs", "learning_rate"):
            assert one[key] == two[key], key
    first, second = (read_folder(f / "model").state for f in (tmp_path, folder / "two" / "plain"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_two_processes_score_as_one(folder: Path) -> None:
    alone = scores(folder, ALONE)
    assert 0 < alone["animals"] < 1
    for rank in range(SIZE):
        assert json.loads((folder / f"scores-{rank}.json").read_text()) == alone
    lines = [line for line in metrics(folder / "two" / "plain") if "evaluation" in line]
    assert [line["step"] for line in lines] == [2, 4]
    best = max(lines, key=lambda line: line["evaluation_mean"])
    facts = json.loads((folder / "two" / "plain" / "checkpoints" / "best" / "best.json").read_text())
    assert facts == {"step": best["step"], "ndcg@10": best["evaluation_mean"]}


def test_if_one_process_is_late_both_give_up_and_train_on(folder: Path) -> None:
    late = folder / "two" / "late"
    assert [line.get("evaluation", 0) for line in metrics(late)] == [0, None, None]
    assert checkpoints(late) == ["step-000002", "step-000003"]


def test_two_processes_resume_bit_for_bit(folder: Path) -> None:
    """With dropout and jitter, of which each process has its own stream."""
    whole, cut = folder / "two" / "whole", folder / "two" / "cut"
    assert metrics(whole) == metrics(cut)
    assert_same_weights(whole / "model", cut / "model")


def test_shares_are_all_there_is() -> None:
    shares = [list(World(rank, 3).share(7)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert {len(share) for share in shares} == {2, 3}


def test_without_torchrun_there_is_one_process() -> None:
    with joined() as world:
        assert world == ALONE
        assert world.first
        assert world.collect(5) == [5]


def test_more_processes_than_pairs_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moembed.training.contrastive.train.current", lambda: World(0, 9))
    with pytest.raises(UserError, match="batch_size 8 is less than one pair for each of 9 processes"):
        run(settings(), make_model(), tmp_path)
