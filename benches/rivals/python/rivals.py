#!/usr/bin/env python3
"""PyTorch, ONNX Runtime and OpenVINO against regard, all taking turns on the same cores in the same process.

regard is called through the small C interface in ../capi, so that the kernel is timed and not a process. All of them are
timed once in every round, in random order, between samples of the multiply-add peak; a speed-up is the median of the ratios
of the rounds, with its 95 % bootstrap interval, and `~` marks intervals that include 1. Every output is checked against f64
before it is timed.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    (cd .. && cargo build --release -p regard-capi)
    .venv/bin/python rivals.py --format md
"""

import argparse
import contextlib
import csv
import ctypes
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# 1 millisecond is a thousand times what the clock costs; Python's calls cost some microseconds more.
SAMPLE_SECONDS = 5e-3
LEAST_ROUNDS = 12
COLUMNS = ["case", "base", "entrant", "speedup", "low", "high", "base_gflops", "gflops", "peak_gflops", "largest_error"]


@dataclass(frozen=True)
class Case:
    """Sizes of a problem; causal masks are aligned at the top left."""

    dtype: str
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    causal: bool = False

    def name(self):
        heads = f"h{self.heads}" if self.heads == self.kv_heads else f"h{self.heads}:{self.kv_heads}"
        mask = "causal" if self.causal else "full"
        return f"{self.dtype}/{mask}/{self.queries}x{self.keys}/d{self.dim}/{heads}"

    def flops(self):
        seen = min(self.queries, self.keys)
        pairs = self.queries * self.keys
        if self.causal:
            pairs = seen * (seen + 1) // 2 + (self.queries - seen) * self.keys
        return 4.0 * self.dim * self.heads * pairs


CASES = [
    Case("f32", 2, 2, 2048, 2048, 64),
    Case("f32", 2, 2, 2048, 2048, 128),
    Case("f32", 2, 2, 2048, 2048, 128, causal=True),
    Case("f32", 8, 8, 16, 8192, 128),
    Case("f32", 32, 32, 1, 8192, 128),
    Case("bf16", 2, 2, 2048, 2048, 128),
    Case("bf16", 2, 2, 2048, 2048, 128, causal=True),
    Case("bf16", 32, 32, 1, 8192, 128),
]


class Inputs:
    """q, k and v as `[1, heads, rows, columns]`: the numbers, and the bits of their type (f32, or the upper half of it)."""

    def __init__(self, case):
        generator = np.random.default_rng(1)
        shapes = [(1, case.heads, case.queries, case.dim)] + 2 * [(1, case.kv_heads, case.keys, case.dim)]
        self.numbers = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.bits = self.numbers
        if case.dtype == "bf16":
            self.bits = [to_bf16(x) for x in self.numbers]
            self.numbers = [from_bf16(x) for x in self.bits]


def to_bf16(x):
    """The nearest bf16 of finite numbers, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def largest_error(case, inputs, out):
    """The largest error of some rows of `out`, `[heads, queries, dim]`, against the definition in f64."""
    q, k, v = (x[0] for x in inputs.numbers)
    group, last = case.heads // case.kv_heads, case.queries - 1
    worst = 0.0
    for head, query in {(0, 0), (0, last), (case.heads - 1, last // 2), (case.heads // 2, last)}:
        seen = min(query + 1, case.keys) if case.causal else case.keys
        keys, values = (x[head // group, :seen].astype(np.float64) for x in (k, v))
        scores = keys @ q[head, query].astype(np.float64) / np.sqrt(case.dim)
        weights = np.exp(scores - scores.max())
        error = np.abs(weights @ values / weights.sum() - out[head, query]).max()
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return float(worst)


class Shape(ctypes.Structure):
    """The shape of the C interface."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("batch", "heads", "kv_heads", "queries", "keys", "head_dim")] + [
        ("causal", ctypes.c_uint32),
        ("dtype", ctypes.c_uint32),
    ]


class Library:
    """regard behind its C interface."""

    def __init__(self, path):
        self.calls = ctypes.CDLL(str(path))
        self.calls.regard_new.restype = ctypes.c_void_p
        self.calls.regard_new.argtypes = [ctypes.POINTER(Shape), ctypes.c_size_t]
        self.calls.regard_run.argtypes = [ctypes.c_void_p] * 5
        self.calls.regard_free.argtypes = [ctypes.c_void_p]
        self.calls.regard_canary.restype = ctypes.c_double

    def canary(self):
        return self.calls.regard_canary()

    def entrant(self, case, inputs, threads):
        shape = Shape(1, case.heads, case.kv_heads, case.queries, case.keys, case.dim, int(case.causal))
        shape.dtype = {"f32": 0, "bf16": 1}[case.dtype]
        handle = self.calls.regard_new(shape, threads)
        if not handle:
            raise RuntimeError("regard refuses this shape")
        out = np.zeros_like(inputs.bits[0])
        # Addresses do not keep arrays alive; the function that holds both does.
        arrays = (*inputs.bits, out)
        pointers = [x.ctypes.data for x in arrays]

        def run(_alive=arrays):
            if self.calls.regard_run(handle, *pointers) != 0:
                raise RuntimeError("regard refuses to run")

        return run, lambda: from_bf16(out)[0] if case.dtype == "bf16" else out[0]


def torch_entrant(case, inputs, threads):
    """`scaled_dot_product_attention`; its causal mask is aligned at the top left."""
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(x) for x in inputs.bits]
    if case.dtype == "bf16":
        tensors = [x.view(torch.bfloat16) for x in tensors]
    out = None

    def run(_alive=inputs):
        nonlocal out
        with torch.inference_mode():
            out = torch.nn.functional.scaled_dot_product_attention(
                *tensors, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads
            )

    return run, lambda: out.float().numpy()[0]


def onnxruntime_entrant(case, inputs, threads):
    """The contributed operator MultiHeadAttention, whose tensors are `[batch, rows, heads * columns]`."""
    import onnxruntime
    from onnx import TensorProto, helper

    if case.dtype != "f32" or case.heads != case.kv_heads:
        return None
    rows = {"q": case.queries, "k": case.keys, "v": case.keys, "out": case.queries}
    width = case.heads * case.dim
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, width]) for name, n in rows.items()}
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["out"],
        domain="com.microsoft",
        num_heads=case.heads,
        unidirectional=int(case.causal),
    )
    graph = helper.make_graph([node], "attention", [info[name] for name in "qkv"], [info["out"]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    # A value on the CPU is the array's own memory.
    arrays = {"out": np.zeros((1, case.queries, width), np.float32)}
    for name, x in zip("qkv", inputs.numbers):
        arrays[name] = np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(1, rows[name], width)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in arrays.items()}
    for name in "qkv":
        binding.bind_ortvalue_input(name, values[name])
    binding.bind_ortvalue_output("out", values["out"])

    def run(_alive=(arrays, values)):
        session.run_with_iobinding(binding)

    return run, lambda: arrays["out"].reshape(case.queries, case.heads, case.dim).transpose(1, 0, 2)


def openvino_entrant(case, inputs, threads):
    """The operator ScaledDotProductAttention, whose causal mask is aligned at the top left."""
    import openvino
    from openvino import opset13

    if case.heads != case.kv_heads:
        return None
    kind = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16}[case.dtype]
    parameters = [opset13.parameter(list(x.shape), kind) for x in inputs.bits]
    node = opset13.scaled_dot_product_attention(*parameters, causal=case.causal)
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": case.dtype,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(openvino.Model([node], parameters), "CPU", config)
    request = compiled.create_infer_request()
    for index, x in enumerate(inputs.bits):
        shared = openvino.Tensor(x, list(x.shape), kind) if case.dtype == "bf16" else openvino.Tensor(x, shared_memory=True)
        request.set_input_tensor(index, shared)

    def result():
        out = request.get_output_tensor(0)
        if out.element_type == openvino.Type.bf16:
            return from_bf16(np.frombuffer(bytes(out.data), np.uint16).reshape(inputs.bits[0].shape))[0]
        return out.data[0]

    def run(_alive=(inputs, compiled)):
        request.infer()

    return run, result


RIVALS = {
    "torch": ("PyTorch", torch_entrant),
    "onnxruntime": ("ONNX Runtime", onnxruntime_entrant),
    "openvino": ("OpenVINO", openvino_entrant),
}


def available():
    """The rivals that can be imported; says loudly which cannot."""
    found = {}
    for module, (name, make) in RIVALS.items():
        try:
            __import__(module)
            if module == "onnxruntime":
                __import__("onnx")
        except (ImportError, OSError, ValueError) as error:
            print(f"rivals.py: NOT MEASURED: {name}: {error}; pip install -r requirements.txt", file=sys.stderr)
            continue
        version = importlib.metadata.version(module).split("+")[0]
        found[f"{name} {version}"] = make
    return found


def repeats(run):
    """Calls that make a sample."""
    count = 1
    while True:
        taken = seconds(run, count)
        if taken >= SAMPLE_SECONDS:
            return count
        count = max(count + 1, min(16 * count, int(1.1 * count * SAMPLE_SECONDS / max(taken, 1e-9))))


def seconds(run, count):
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start


def interval(ratios):
    """The 95 % bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    return np.quantile(medians, [0.025, 0.975])


def hold(case, library, rivals, threads, budget, test):
    """Rows of everybody against regard."""
    inputs = Inputs(case)
    makers = {"regard": library.entrant, **rivals}
    entrants = []
    for name, make in makers.items():
        made = make(case, inputs, threads)
        if made is None:
            continue
        run, result = made
        run()
        error = largest_error(case, inputs, np.asarray(result(), dtype=np.float64))
        if not error < (3e-2 if case.dtype == "bf16" else 1e-3):
            print(f"rivals.py: NOT MEASURED: {name} is wrong by {error:.1e} in {case.name()}", file=sys.stderr)
            continue
        entrants.append((name, run, error, repeats(run)))
    if not entrants or entrants[0][0] != "regard":
        raise RuntimeError("regard itself is wrong")
    times, canaries = [[] for _ in entrants], [library.canary()]
    order, shuffle, start = list(range(len(entrants))), random.Random(1), time.perf_counter()
    while len(canaries) <= (1 if test else LEAST_ROUNDS) or (time.perf_counter() - start < budget and not test):
        shuffle.shuffle(order)
        for index in order:
            _, run, _, count = entrants[index]
            times[index].append(seconds(run, count) / count)
        canaries.append(library.canary())
    canaries = np.array(canaries)
    peak = np.median(canaries)
    # As they would have been at the median of the canaries.
    times = np.array(times) * (canaries[:-1] + canaries[1:]) / 2 / peak
    rate = case.flops() / np.median(times, axis=1) / 1e9
    rows = []
    for index, (name, _, error, _) in enumerate(entrants):
        ratios = times[0] / times[index]
        low, high = interval(ratios)
        figures = [np.median(ratios), low, high, rate[0], rate[index], peak, error]
        rows.append(dict(zip(COLUMNS, [case.name(), "regard", name, *map(float, figures)])))
    return rows


def table(row, markdown):
    mark = "" if not row["low"] <= 1 <= row["high"] or row["entrant"] == "regard" else "~ "
    cells = [
        row["case"],
        row["entrant"],
        f"{row['gflops']:.1f}",
        f"{row['gflops'] / row['peak_gflops']:.3f}",
        f"{mark}{row['speedup']:.3f}",
        f"{row['low']:.3f} .. {row['high']:.3f}",
        f"{row['largest_error']:.1e}",
    ]
    return in_line(cells, markdown)


def in_line(cells, markdown):
    if markdown:
        return f"| {' | '.join(cells)} |"
    widths = [30, 22, 9, 9, 10, 18, 8]
    return "  ".join(f"{cell:<{n}}" if i < 2 else f"{cell:>{n}}" for i, (cell, n) in enumerate(zip(cells, widths)))


class Printer:
    """Rows in one of the formats, as they come."""

    def __init__(self, form):
        self.form = form
        self.machine = processor()
        self.started = False

    def print(self, rows):
        markdown = self.form == "md"
        names = ["case", "implementation", "GFLOP/s", "of peak", "of regard", "95 % interval", "error"]
        if not self.started:
            self.started = True
            if self.form in ("table", "md"):
                print(self.machine + ("\n" if markdown else ""))
                print(in_line(names, markdown))
                if markdown:
                    print("|---|---|---:|---:|---:|---:|---:|")
            elif self.form == "csv":
                csv.writer(sys.stdout).writerow(["machine", *COLUMNS])
        for row in rows:
            if self.form == "csv":
                csv.writer(sys.stdout).writerow([self.machine, *row.values()])
            elif self.form == "jsonl":
                print(json.dumps({"machine": self.machine, **row}))
            else:
                print(table(row, markdown))
        sys.stdout.flush()


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the C interface [default: ../target/release/libregard_capi.*]")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--format", choices=["table", "md", "csv", "jsonl"], default="table")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for a case; 12 rounds are made in any case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="one round of each: whether everything works")
    return parser.parse_args()


def main():
    args = options()
    name = {"Darwin": "libregard_capi.dylib", "Windows": "regard_capi.dll"}.get(platform.system(), "libregard_capi.so")
    path = args.library or HERE.parent / "target" / "release" / name
    if not path.exists():
        sys.exit(f"rivals.py: there is no {path}: cargo build --release -p regard-capi, in benches/rivals")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if args.threads > len(cores):
            sys.exit(f"rivals.py: --threads is {args.threads}, but this process may use {len(cores)} CPUs only")
        # Not the first, which serves most interrupts, unless all are needed.
        os.sched_setaffinity(0, cores[1 : 1 + args.threads] if len(cores) > args.threads else cores)
    library, rivals, printer = Library(path), available(), Printer(args.format)
    for case in CASES:
        if args.filter in case.name():
            printer.print(hold(case, library, rivals, args.threads, args.seconds, args.test))


if __name__ == "__main__":
    try:
        import numpy as np
    except ImportError:
        sys.exit("rivals.py: numpy is missing: pip install -r requirements.txt")
    main()
