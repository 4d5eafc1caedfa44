"""Four ways to run experts in an ONNX graph, timed by onnxruntime on this machine's CPU.

MiniLM with every second layer upcycled to eight experts, two per token, the experts made to differ. A graph
runs in a process of its own, on one thread; the graphs take turns, and the least CPU time and the peak of
memory of each are kept, so that other work on the machine matters little. Prints a Markdown table::

    python benchmarks/onnx_experts.py
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import torch

from moembed.embedder import Embedder
from moembed.export.onnx.encoder import build
from moembed.export.onnx.experts import Experts, expert, experts_of, routing, sparse
from moembed.export.onnx.graph import Graph, numpy
from moembed.folder.bases import locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.model.block import LayerSpec
from moembed.packing import pack
from moembed.weights.upcycle import UpcycleConfig, upcycle

SHAPES = ((1, 32), (32, 64))  # texts, tokens per text
ROUNDS, REPEATS = 2, 4


def scatter(graph: Graph, layer: LayerSpec, name: str, hidden_TD: str, logit_TE: str) -> str:
    """For every expert: find its tokens, gather them, compute, add to the output with ScatterND."""
    moe = experts_of(layer)
    weight_TK, expert_TK = routing(graph, moe.router, logit_TE)
    output_TD = graph.op("Sub", hidden_TD, hidden_TD)
    for number in range(moe.num_experts):
        place_2N = graph.op("NonZero", graph.op("Equal", expert_TK, graph.scalar(number)))
        place_N2 = graph.op("Transpose", place_2N, perm=(1, 0))
        token_N = graph.op("Gather", place_2N, graph.scalar(0))
        computed_ND = expert(graph, layer.ffn, name, number, graph.op("Gather", hidden_TD, token_N))
        weight_N1 = graph.op("Unsqueeze", graph.op("GatherND", weight_TK, place_N2), graph.ints(1))
        weighted_ND = graph.op("Mul", computed_ND, weight_N1)
        token_N1 = graph.op("Unsqueeze", token_N, graph.ints(1))
        output_TD = graph.op("ScatterND", output_TD, token_N1, weighted_ND, reduction="add")
    return output_TD


def dense(graph: Graph, layer: LayerSpec, name: str, hidden_TD: str, logit_TE: str) -> str:
    """Every expert on every token, times a weight that is mostly zero."""
    moe = experts_of(layer)
    weight_TK, expert_TK = routing(graph, moe.router, logit_TE)
    nothing_TE = graph.op("Sub", logit_TE, logit_TE)
    weight_TE = graph.op("ScatterElements", nothing_TE, expert_TK, weight_TK, axis=1)
    weight_T1 = graph.ops("Split", weight_TE, results=moe.num_experts, axis=1, num_outputs=moe.num_experts)
    weighted = [
        graph.op("Mul", expert(graph, layer.ffn, name, number, hidden_TD), weight)
        for number, weight in enumerate(weight_T1)
    ]
    return graph.op("Sum", *weighted)


def contrib(graph: Graph, layer: LayerSpec, name: str, hidden_TD: str, logit_TE: str) -> str:
    """onnxruntime's own operator; its GELU is the tanh form."""
    moe = experts_of(layer)
    parts = [f"{name}.{part}" for part in ("up_EFD", "up_bias_EF", "down_EDF", "down_bias_ED")]
    return graph.op(
        "MoE",
        hidden_TD,
        logit_TE,
        *(graph.constant(part, numpy(graph.state[part])) for part in parts),
        domain="com.microsoft",
        k=moe.router.top_k,
        activation_type="gelu",
        normalize_routing_weights=int(moe.router.normalize is not None),
    )


GRAPHS: dict[str, tuple[Experts, bool]] = {
    "sorted, split, restored (exported)": (sparse, False),
    "gather, ScatterND add": (scatter, False),
    "com.microsoft.MoE": (contrib, False),
    "dense dispatch": (dense, False),
    "sorted, split, restored, int8": (sparse, True),
}


def upcycled_minilm() -> Parts:
    base = read_folder(Path(locate_base("minilm")))
    spec, state = upcycle(base.spec, base.state, UpcycleConfig())
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("up_EFD", "down_EDF")):
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = tensor + 0.1 * tensor.std() * noise
    return replace(base, spec=spec, state=state)


def token_rows(parts: Parts, texts: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(parts.spec.vocab_size, size=(texts, length), dtype=np.int64)


def measure(file: Path, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], list[float], float]:
    """Vectors and least seconds for every batch, and the peak of the process's memory in MB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    vectors, seconds = [], []
    for token_BS in inputs:
        feed = {"input_ids": token_BS, "attention_mask": np.ones_like(token_BS)}
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            (vector_BD,) = session.run(["sentence_embedding"], feed)
            times.append(time.process_time() - start)
        vectors.append(vector_BD)
        seconds.append(min(times))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return vectors, seconds, int(peak.split()[1]) / 1024


def main() -> None:
    parts = upcycled_minilm()
    inputs = [token_rows(parts, *shape) for shape in SHAPES]
    with torch.inference_mode():
        model = Embedder(parts).eval()
        expected = [model(pack(token_BS.tolist())).vector_BM.numpy() for token_BS in inputs]
    shapes = " | ".join(f"{texts} x {length} tokens, ms" for texts, length in SHAPES)
    print(f"| experts | {shapes} | peak MB | file MB | nodes | max error | lowest cosine |")
    print("|---|" + "---:|" * (len(SHAPES) + 5))
    with tempfile.TemporaryDirectory() as folder:
        files = {title: Path(folder) / f"{number}.onnx" for number, title in enumerate(GRAPHS)}
        nodes = {}
        for title, (experts, int8) in GRAPHS.items():
            graph = build(parts, int8, experts)
            nodes[title] = len(graph.graph.node)
            onnx.save_model(graph, files[title])
        runs: dict[str, list[tuple[list[np.ndarray], list[float], float]]] = {title: [] for title in GRAPHS}
        for title in list(GRAPHS) * ROUNDS:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                runs[title].append(pool.submit(measure, files[title], inputs).result())
        for title, results in runs.items():
            vectors = results[0][0]
            error = max(float(np.abs(v - e).max()) for v, e in zip(vectors, expected, strict=True))
            cosine = min(float((v * e).sum(-1).min()) for v, e in zip(vectors, expected, strict=True))
            seconds = [min(times) for times in zip(*(seconds for _, seconds, _ in results), strict=True)]
            peak, size = max(peak for _, _, peak in results), files[title].stat().st_size / 1e6
            figures = [*(f"{1e3 * s:.1f}" for s in seconds), f"{peak:.0f}", f"{size:.0f}", str(nodes[title])]
            print(f"| {title} | {' | '.join(figures)} | {error:.1e} | {cosine:.4f} |")


if __name__ == "__main__":
    main()
