"""One gradient step of a keyboard-sized model through four systems, side by side.

    python bench/train_step.py --json
    python bench/train_step.py --where

The systems: PyTorch eager, the stock ExecuTorch training artifact as it comes, our ``.pte``, our ONNX program. Each
lives in a process of its own, so that its peak memory is its own; the processes take turns, a few steps each, so
that noise of the machine meets all of them. All are held to the same number of cores.

``peak_mb`` is the most anonymous memory that model or program and steps add to the imported runtime, ``mapped_mb``
what steps add to the pages of mapped files. Eager's has the model's weights in it, the stock artifact's what its
export left, as that runs in the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure

SYSTEMS = ("torch_eager", "executorch_stock", "pfl_executorch", "pfl_onnxruntime")
BATCH, LENGTH, VOCABULARY = 16, 20, 8000


def deployment() -> Any:
    """The model with LoRA r=4 on q and v, its LoRA tensors away from their neutral start."""
    import torch
    from gpt import seeded

    from pfl_mobile import LoRA
    from pfl_mobile.modules.personalize import personalize
    from pfl_mobile.plan.optimizers import Sgd
    from pfl_mobile.plan.phases import TrainPhase
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.deployment import Deployment
    from pfl_mobile.programs.tasks import TokenTask

    model = personalize(seeded(), [LoRA("*.[qv]", rank=4)])
    generator = torch.Generator().manual_seed(1)
    model.load_values(
        {k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in model.values().items()}
    )

    def ids() -> torch.Tensor:
        return torch.randint(4, VOCABULARY, (BATCH, LENGTH), generator=generator)

    batch = {"tokens": ids(), "labels": ids(), "weight": torch.ones(BATCH, LENGTH)}
    plan = Plan(phases=(TrainPhase(steps=1, optimizer=Sgd(lr=0.1)),))
    short = {"tokens": batch["tokens"][:1], "position": torch.tensor([LENGTH - 1])}
    return Deployment("bench", model, TokenTask(VOCABULARY), batch, plan, predict_batch=short)


def torch_eager(_: str, threads: int) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    d = deployment()
    parameters = d.model.train_parameters()
    for p in parameters:
        p.requires_grad_(True)
    names = list(d.model.values())
    labels = d.batch["labels"].flatten()

    def step() -> Any:
        logits = d.model(d.batch["tokens"])
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        return loss, torch.autograd.grad(loss, parameters)

    return step, lambda out: dict(zip(names, (g.numpy() for g in out[1]), strict=True))


def executorch_stock(_: str, threads: int) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    """``_export_forward_backward`` of the same model, lowered as it comes, run by ``executorch.extension.training``."""
    import torch
    import torch.nn.functional as F
    from executorch.extension.pybindings import portable_lib
    from executorch.extension.training import _load_for_executorch_for_training_from_buffer
    from peer_systems.executorch_stock import training_program

    d = deployment()
    for p in d.model.train_parameters():
        p.requires_grad_(True)

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = d.model

        def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.model(tokens).flatten(0, 1), labels.flatten())

    inputs = (d.batch["tokens"], d.batch["labels"])
    buffer = training_program(WithLoss(), inputs)
    portable_lib._unsafe_reset_threadpool(threads)
    module = _load_for_executorch_for_training_from_buffer(buffer)
    paths = {f"model.{d.model.path(name)}": name for name in d.model.values()}

    def step() -> Any:
        assert buffer  # the module reads it and does not keep it alive
        return module.forward_backward("forward", inputs)

    def grads(_out: Any) -> dict[str, Any]:
        found = module.named_gradients()
        # its loss is a mean over B*T labels, ours a sum
        return {paths[k]: v.numpy() * (BATCH * LENGTH) for k, v in found.items()}

    return step, grads


def _session(
    bundle: str, engine: str, threads: int
) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines import open_session

    opened = Bundle.open(bundle)
    session = open_session(opened, engine, threads=threads, trusted=True)
    case = opened.golden()["gradients"]
    inputs = {**case.inputs, **opened.values()}

    def grads(out: dict[str, Any]) -> dict[str, Any]:
        return {k.removeprefix("grad."): v for k, v in out.items() if k.startswith("grad.")}

    return lambda: session.run("gradients", inputs), grads


def pfl_executorch(bundle: str, threads: int) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    return _session(bundle, "executorch", threads)


def pfl_onnxruntime(bundle: str, threads: int) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    return _session(bundle, "onnxruntime", threads)


#: What is loaded before memory is looked at: the runtime, and what our own code imports of it.
RUNTIMES = {
    "torch_eager": ("torch", "gpt", "pfl_mobile.programs.deployment"),
    "executorch_stock": ("torch", "executorch.extension.training", "peer_systems.executorch_stock"),
    "pfl_executorch": ("executorch.runtime", "pfl_mobile.engines.executorch", "pfl_mobile.bundle.read"),
    "pfl_onnxruntime": ("onnxruntime", "pfl_mobile.engines.onnxruntime", "pfl_mobile.bundle.read"),
}


def worker(pipe: Any, system: str, bundle: str, threads: int) -> None:
    """Serve one system: build it, then run as many steps as asked and send the milliseconds."""
    measure.stay_on(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the runtimes' own chatter
    try:
        for module in RUNTIMES[system]:
            importlib.import_module(module)
        before = measure.memory("RssAnon")
        step, grads = globals()[system](bundle, threads)
        built = measure.memory("RssAnon") - before
        outs, added = measure.watched(lambda: [step() for _ in range(3)])
        memory = {"peak_mb": (built + added.anonymous) / 1e6, "mapped_mb": added.mapped / 1e6}
        pipe.send(("ready", grads(outs[-1]), memory))
        while (steps := pipe.recv()) is not None:
            pipe.send([1000 * seconds for seconds in measure.timed(step, steps)])
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}", {}))
        raise


#: Kinds of operator of both runtimes, the first that matches. ``[xnnpack]`` is an operator inside the delegate.
KINDS = {
    "products": r"((Dynamic )?Fully Connected|Batch Matrix Multiply).*\[xnnpack\]|(Fused)?MatMul|Gemm",
    "products outside the delegate": r"(mm|bmm|addmm)\.out",
    "softmax, loss, indexing": r"Softmax|ArgMax|ReduceMax|max\.dim|amax|log\.|Log\b|[Gg]ather|[Ss]catter|embedding\.",
    "layout": r"Transpose|Static Reshape|Reshape|Static Slice|Concat|Expand|Unsqueeze|Squeeze|\w+_copy\.",
    "norms": r"native_layer_norm|LayerNormalization",
    "sums": r"sum\.|ReduceSum|Static Sum|Mean|mean\.",
    "elementwise": r"Multiply|Add|Subtract|Divide|Mul|Sub|Div|Erf|Exp\b|Neg|Square|GELU|Where|where\.|Cast|Equal",
}
#: Operators of ONNX Runtime whose time is that of the graph inside them, whose operators are events of their own.
CONTAINERS = ("Scan", "If", "Loop")

Parts = dict[str, dict[str, float]]


def summed(runs: list[dict[str, list[float]]], totals: list[float]) -> tuple[Parts, dict[str, float]]:
    """Milliseconds and calls by operator, the largest first, and milliseconds by kind with what no operator took.

    ``runs`` has the milliseconds of each operator's calls in each step, ``totals`` those of the step as a whole.
    """
    import re

    names = sorted({name for run in runs for name in run})
    parts = {
        name: {
            "ms": round(statistics.median(sum(run.get(name, ())) for run in runs), 3),
            "calls": max(len(run.get(name, ())) for run in runs),
        }
        for name in names
    }
    kinds: dict[str, list[float]] = {}
    for index, run in enumerate(runs):
        for name, taken in run.items():
            kind = next((k for k, pattern in KINDS.items() if re.match(pattern, name)), "other")
            kinds.setdefault(kind, [0.0] * len(runs))[index] += sum(taken)
    kinds["runtime"] = [total - sum(map(sum, run.values())) for run, total in zip(runs, totals, strict=True)]
    by_kind = {kind: round(statistics.median(taken), 3) for kind, taken in kinds.items()}
    by_kind["step"] = round(statistics.median(totals), 3)
    return dict(sorted(parts.items(), key=lambda item: -item[1]["ms"])), by_kind


def onnx_breakdown(bundle: str, folder: str) -> tuple[Parts, dict[str, float]]:
    """Where a step of our ONNX program on one core spends its time, from ONNX Runtime's own profiler."""
    import onnxruntime

    from pfl_mobile.bundle.read import Bundle

    opened = Bundle.open(bundle)
    inputs = {**opened.golden()["gradients"].inputs, **opened.values()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "onnx_trace")
    path = str(Path(bundle) / "onnx" / "gradients.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {want.name: inputs[want.name] for want in session.get_inputs()}
    for _ in range(9):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    steps = [e for e in events if e.get("name") == "model_run"]
    runs: list[dict[str, list[float]]] = []
    for step in steps:
        runs.append({})
        for event in events:
            inside = step["ts"] <= event["ts"] <= step["ts"] + step["dur"]
            if inside and event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["args"]["op_name"]
                if name not in CONTAINERS:
                    runs[-1].setdefault(name, []).append(event["dur"] / 1e3)
    return summed(runs, [step["dur"] / 1e3 for step in steps])


def breakdown(bundle: str, folder: str) -> tuple[Parts, dict[str, float]]:
    """Where a step of our ``.pte`` spends its time, by operator and by kind of operator.

    From ExecuTorch's own event trace; ``[xnnpack]`` marks operators inside the delegate. The events are added up here,
    as ExecuTorch's ``Inspector`` counts what happens in a loop once.
    """
    import re

    from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc
    from executorch.extension.pybindings.portable_lib import _load_for_executorch
    from torch import from_numpy

    from pfl_mobile.bundle.read import Bundle

    opened = Bundle.open(bundle)
    case = opened.golden()["gradients"]
    inputs = [from_numpy(case.inputs[spec.name]) for spec in opened.manifest.program("gradients").inputs]
    module = _load_for_executorch(str(opened.engine_files("executorch")["model"]), enable_etdump=True)
    for _ in range(9):
        module.run_method("gradients", inputs)
    trace = Path(folder) / "trace.etdump"
    module.write_etdump_result_to_file(str(trace))
    runs: list[dict[str, list[float]]] = []
    totals: list[float] = []
    for run in deserialize_from_etdump_flatcc(trace.read_bytes()).run_data:
        if run.name != "Execute":
            continue
        runs.append({})
        for event in (e.profile_event for e in run.events if e.profile_event is not None):
            name = event.name or f"{event.delegate_debug_id_str} [xnnpack]"
            taken = (event.end_time - event.start_time) / 1e6
            if name == "Method::execute":
                totals.append(taken)
            elif name not in ("DELEGATE_CALL", "OPERATOR_CALL"):
                name = re.sub(r" #\d+(?= |$)|^native_call_", "", name)
                runs[-1].setdefault(name, []).append(taken)
    return summed(runs, totals)


def matmul_peak(threads: int) -> dict[str, float]:
    """GFLOP/s of the best of several float32 matrix products on ``threads`` cores, by library: with a weight that the
    library may pack beforehand. The fastest is what this machine can do; PyTorch's has no AVX-512 on AMD."""
    import numpy as np
    import onnxruntime
    import torch
    from onnx import TensorProto, helper, numpy_helper

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    best = {"torch": 0.0, "onnxruntime": 0.0}
    for n in (512, 1024, 1536, 512, 1024):
        a, b = (np.random.default_rng(0).standard_normal((n, n), dtype=np.float32) for _ in "ab")
        x, y = ({name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, n])} for name in "xy")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            list(x.values()),
            list(y.values()),
            [numpy_helper.from_array(b, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        first, second = torch.from_numpy(a), torch.from_numpy(b)
        products: dict[str, Callable[[], Any]] = {
            "torch": partial(torch.mm, first, second),
            "onnxruntime": partial(session.run, None, {"x": a}),
        }
        for name, product in products.items():
            best[name] = max(best[name], 2 * n**3 / min(measure.timed(product, 20)) / 1e9)
    return best


def where() -> dict[str, Any]:
    """Where a step on one core spends its time on both engines, by operator and by kind, in milliseconds."""
    from pfl_exporters.export import export_bundle

    measure.stay_on(1)
    d = deployment()
    found: dict[str, Any] = {"step_gflop": round(step_gflop(d), 3)}
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        export_bundle(d, ["android", "onnx"], bundle)
        for engine, look in (("executorch", breakdown), ("onnxruntime", onnx_breakdown)):
            parts, kinds = look(bundle, folder)
            found[engine] = {"kinds": kinds, "operators": parts}
    found["matmul_gflops"] = {name: round(speed, 1) for name, speed in matmul_peak(1).items()}
    return found


def step_gflop(d: Any) -> float:
    """Arithmetic of the matrix products in the traced ``gradients`` program, in GFLOP."""
    import torch

    from pfl_mobile.programs.trace import trace_programs

    graph = trace_programs(d.model, d.task, d.batch, d.predict_batch)["gradients"].graph
    total = 0
    for node in graph.graph.nodes:
        if node.target in (
            torch.ops.aten.linear.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.bmm.default,
        ):
            left = node.args[0].meta["val"].shape
            total += 2 * node.meta["val"].numel() * left[-1]
    return total / 1e9


def run(threads: int, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Build all systems, take turns, and summarise."""
    import numpy as np
    import torch

    from pfl_exporters.export import export_bundle

    torch.set_num_threads(threads)
    measure.stay_on(threads)
    d = deployment()
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        say("export the bundle")
        export_bundle(d, ["android", "onnx"], bundle)
        context = mp.get_context("spawn")
        pipes: dict[str, Any] = {}
        grads: dict[str, dict[str, Any]] = {}
        taken_mb: dict[str, dict[str, float]] = {}
        with contextlib.ExitStack() as stack:
            for system in SYSTEMS:
                say(f"build {system}")
                here, there = context.Pipe()
                process = context.Process(target=worker, args=(there, system, bundle, threads), daemon=True)
                process.start()
                there.close()  # so that a crash ends recv() instead of waiting for ever
                stack.callback(process.terminate)
                state, payload, memory = here.recv()
                if state != "ready":
                    sys.exit(f"{system}: {payload}")
                pipes[system], grads[system], taken_mb[system] = here, payload, memory
            times: dict[str, list[float]] = {s: [] for s in SYSTEMS}
            for index in range(rounds + 1):
                say(f"round {index} of {rounds}")
                for system in SYSTEMS:
                    # the stock artifact is so slow that one step a round is enough
                    pipes[system].send(1 if system == "executorch_stock" else steps)
                    taken = pipes[system].recv()
                    if index:  # the first round warms up
                        times[system] += taken
            for system in SYSTEMS:
                pipes[system].send(None)
        say("trace one step of the .pte")
        parts, kinds = breakdown(bundle, folder)
    reference = grads["torch_eager"]

    def error(system: str) -> float:
        return max(float(np.abs(grads[system][k] - v).max() / np.abs(v).max()) for k, v in reference.items())

    medians = {s: statistics.median(t) for s, t in times.items()}
    products, gflop = matmul_peak(threads), step_gflop(d)
    peak = max(products.values())
    return {
        "threads": threads,
        "model": {
            "vocabulary": VOCABULARY,
            "width": 256,
            "layers": 4,
            "batch": BATCH,
            "length": LENGTH,
            "rank": 4,
        },
        "matmul_gflops": {name: round(speed, 1) for name, speed in products.items()},
        "step_gflop": round(gflop, 3),
        "systems": {
            s: {
                "ms": round(medians[s], 2),
                "ms_min": round(min(times[s]), 2),
                "ratio": round(medians[s] / medians["torch_eager"], 3),
                **{name: round(value, 1) for name, value in taken_mb[s].items()},
                "part_of_peak": round(gflop / medians[s] * 1000 / peak, 3),
                "grad_max_rel_err": error(s),
            }
            for s in SYSTEMS
        },
        "pfl_executorch_breakdown": dict(list(parts.items())[:20]),
        "pfl_executorch_kinds": kinds,
        "stock_over_pfl_executorch": round(medians["executorch_stock"] / medians["pfl_executorch"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="cores for every system (default 1)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each system (default 12)")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--where", action="store_true", help="print where a step's time goes, as JSON")
    options = parser.parse_args()
    if options.where:
        print(json.dumps(where(), indent=1))
        return
    say = (lambda _: None) if options.json else (lambda text: print(text, file=sys.stderr, flush=True))
    result = run(options.threads, options.rounds, options.steps, say)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['step_gflop']} GFLOP a step, products at {result['matmul_gflops']} GFLOP/s")
    for name, row in result["systems"].items():
        print(
            f"{name:18s} {row['ms']:9.2f} ms  x{row['ratio']:.3f}  {row['peak_mb']:7.0f} MB  "
            f"gradient error {row['grad_max_rel_err']:.1e}"
        )


if __name__ == "__main__":
    main()
