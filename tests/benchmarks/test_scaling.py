"""Communication volume against messages actually sent, and step time splits against known delays."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.method.backbones import build_resnet
from benchmarks.__main__ import main
from benchmarks.scaling.collective_timer import CollectiveTimer, StepTrace, time_messages
from benchmarks.scaling.comm_volume import Communication, epoch_traffic, network, step_traffic
from benchmarks.scaling.cost_model import Assumptions, ComputeWork, Step, estimate_step, measure_work, transfer_seconds
from benchmarks.scaling.worker import loopback_bytes, split
from benchmarks.step import make_warm_trainer
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import settings

Sent = Counter[tuple[str, str]]
"""Calls or bytes by (operation, element type)."""


def small(**changed: object) -> Config:
    values = {"model.backbone": "resnet10", "data.image_size": 32, "batch_size": 9, "runtime.precision": "fp32"}
    return build_config(
        [ConfigLayer("test", {**values, **{key.replace("__", "."): value for key, value in changed.items()}})]
    )


def record(calls: Sent, nbytes: Sent) -> None:
    """Count what this process passes to torch's collectives from now on."""

    def count(name: str, place: int, torchs_name: str = "") -> None:
        torchs_name = torchs_name or name
        original = getattr(distributed_c10d, torchs_name)

        def counted(*args: Any, **options: Any) -> Any:
            tensor = args[place]
            calls[name, str(tensor.dtype)] += 1
            nbytes[name, str(tensor.dtype)] += tensor.numel() * tensor.element_size()
            return original(*args, **options)

        for module in (dist, distributed_c10d):
            setattr(module, torchs_name, counted)

    count("all_reduce", 0)
    # newer versions of torch gather objects by this name
    newer = hasattr(distributed_c10d, "all_gather_single")
    count("all_gather", 1, "all_gather_single" if newer else "all_gather")
    count("broadcast", 0)


# --- predicted counts against real messages


def steps_of_a_rank(world: World, config: Config) -> dict[str, Any]:
    work = make_warm_trainer(config, world)
    calls, nbytes, buckets = Counter[Any](), Counter[Any](), list[int]()

    def hook(state, bucket):  # type: ignore[no-untyped-def]
        buckets.append(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    (wrapped,) = [part for part in vars(work.engine).values() if isinstance(part, nn.parallel.DistributedDataParallel)]
    wrapped.register_comm_hook(dist.group.WORLD, hook)
    record(calls, nbytes)
    work.step()
    # the hook passes the buckets to all_reduce too: the rest are our own messages
    calls["all_reduce", "torch.float32"] -= len(buckets)
    nbytes["all_reduce", "torch.float32"] -= sum(buckets)
    return {"calls": calls, "bytes": nbytes, "buckets": buckets, "frozen": work.engine.model.extractor_frozen}


@pytest.mark.parametrize("case", ["plain", pytest.param("frozen, local, three ranks", marks=pytest.mark.slow)])
def test_predicted_step_volume_equals_measured(case: str, tmp_path: Path) -> None:
    config, ranks = small(), 2
    if case != "plain":
        torch.save(build_resnet("resnet10").state_dict(), tmp_path / "weights.pt")
        config, ranks = small(model__pretrained=str(tmp_path / "weights.pt"), loss__batch_scope="local"), 3
    found = run_ranks(steps_of_a_rank, ranks, config)
    model = network(small(), 7, frozen=found[0]["frozen"])
    paper = {traffic.part: traffic for traffic in step_traffic(model, config, ranks, "cpu")}
    norms = [paper["BatchNorm, forward"], paper["BatchNorm, backward"]]
    assert found[0]["frozen"] == (case != "plain")
    assert ("attention" in paper) == (case == "plain")
    for rank in found:
        assert (len(rank["buckets"]), sum(rank["buckets"])) == (paper["gradients"].calls, paper["gradients"].nbytes)
        assert rank["calls"]["all_reduce", "torch.float64"] == sum(norm.calls for norm in norms)
        assert rank["bytes"]["all_reduce", "torch.float64"] == sum(norm.nbytes for norm in norms)
        attention = paper.get("attention", Communication("", "all-reduce", 0, 0))
        assert rank["calls"]["all_reduce", "torch.float32"] == attention.calls
        assert rank["bytes"]["all_reduce", "torch.float32"] == attention.nbytes


def whole_run(world: World, values: dict[str, str]) -> tuple[Sent, Sent]:
    calls, nbytes = Counter[Any](), Counter[Any]()
    record(calls, nbytes)
    train.run(build_config([ConfigLayer("test", values)]))
    return calls, nbytes


@pytest.mark.slow
def test_predicted_epoch_volume_equals_measured(faces: Path, tmp_path: Path) -> None:
    """One epoch is the difference between a run of two epochs and a run of one."""
    found = []
    for epochs in ("1", "2"):
        pace = {"runtime__stop_check_steps": "2", "runtime__log_every_steps": "2", "evaluation__run_test": "false"}
        values = settings(faces, tmp_path / epochs, epochs=epochs, **pace)
        found.append(run_ranks(whole_run, 2, values)[0])
    config = build_config([ConfigLayer("test", values)])
    step = step_traffic(network(config, 7, False), config, 2, "cpu")
    paper = [traffic.scaled(4) for traffic in step if traffic.part != "gradients"]  # 64 samples; without DDP's own
    paper += epoch_traffic(config, 7, 64)
    for number, field in enumerate(("calls", "nbytes")):
        sent = sum_by_operation(found[1][number]) - sum_by_operation(found[0][number])
        counted = Counter[str]()
        for traffic in paper:
            counted[traffic.operation.replace("-", "_")] += getattr(traffic, field)
        assert sent == counted


def sum_by_operation(sent: Sent) -> Counter[str]:
    total = Counter[str]()
    for (operation, _), number in sent.items():
        total[operation] += number
    return total


def test_predicted_parameter_counts() -> None:
    """ResNet18 without its classifier, its last three stages twice, heads of 7 and 1 on 512 features."""
    backbone = torchvision.models.resnet18()
    stages = sum(p.numel() for s in (backbone.layer2, backbone.layer3, backbone.layer4) for p in s.parameters())
    whole = sum(p.numel() for p in backbone.parameters()) - sum(p.numel() for p in backbone.fc.parameters())
    heads = (512 + 1) * (7 + 1)
    config = small(model__backbone="resnet18")
    for frozen, parameters in ((False, whole + stages + 2 * heads), (True, 2 * stages + 2 * heads)):
        (gradients,) = [t for t in step_traffic(network(config, 7, frozen), config, 8, "cuda") if t.part == "gradients"]
        assert gradients.nbytes == 4 * parameters
        assert gradients.sent(8) == pytest.approx(4 * parameters * 2 * 7 / 8)


def test_local_batch_norm_sends_nothing() -> None:
    config = small(runtime__sync_batch_norm=False)
    assert {t.part for t in step_traffic(network(config, 7, False), config, 8, "cuda")} == {"gradients", "attention"}


# --- the collective timer and the split of a step


def late_rank(world: World) -> tuple[float, float, int]:
    """Rank 1 is 0.3 s late for the second of two messages."""
    tap = CollectiveTimer(SimpleNamespace(), world)
    tensor = torch.ones(1000)

    def step() -> None:
        world.all_reduce_sum_(tensor)
        time.sleep(0.3 * world.rank)
        world.all_reduce_sum_(tensor)

    with tap.install():
        tap.record_step(step)
    (taken,) = tap.steps
    (alone,) = time_messages(taken.messages, world, 1)
    return *split(taken, alone), sum(message.nbytes for message in taken.messages)


def test_waiting_is_separated_from_communication() -> None:
    (communication, waiting, nbytes), late = run_ranks(late_rank, 2)
    assert nbytes == 8000
    assert waiting > 0.25 > 10 * communication
    assert late[0] + late[1] < 0.15


def test_step_time_split_of_known_times() -> None:
    step = StepTrace(began=0.0)
    step.messages = [SimpleNamespace()] * 2  # type: ignore[list-item]
    step.marks = [(1.0, 1.5), (2.0, 2.1)]
    step.buckets = [SimpleNamespace()] * 2  # type: ignore[list-item]
    step.last_bucket, step.backward_ended, step.ended = 3.0, 3.4, 4.0
    # of 0.5 s its own 0.2; all of 0.1 s, although it takes 0.3 alone; of the gradients' 0.4 s their own 0.1 + 0.2
    communication, waiting = split(step, [0.2, 0.3, 0.1, 0.2])
    assert (communication, waiting) == (pytest.approx(0.6), pytest.approx(0.4))
    assert step.seconds() == 4.0


def test_collective_timer_is_removed() -> None:
    before = dist.all_reduce
    with CollectiveTimer(SimpleNamespace(), World(torch.device("cpu"))).install():
        assert dist.all_reduce is not before
    assert dist.all_reduce is before


def test_loopback_counts_bytes() -> None:
    before = loopback_bytes()
    if before is None:
        pytest.skip("no /proc/net/dev with a loopback device")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            for _ in range(16):
                sender.sendall(bytes(1 << 16))
                assert len(receiver.recv(1 << 16, socket.MSG_WAITALL)) == 1 << 16
    after = loopback_bytes()
    assert after is not None and after - before >= 1 << 20


# --- the projection


def test_transfer_time_by_hand() -> None:
    assumptions = Assumptions(node_latency_us=10, network_latency_us=30, node_gb_s=100, network_gb_s=10)
    reduce, gather = Communication("", "all-reduce", 3, 10**9), Communication("", "all-gather", 3, 10**9)
    assert transfer_seconds(reduce, 8, assumptions) == pytest.approx(30e-6 + 2 * 7 / 8 / 100)
    # two nodes: 1/8 of it goes over each GPU's link, half of that out and half back
    assert transfer_seconds(reduce, 16, assumptions) == pytest.approx(
        120e-6 + 2 * 7 / 8 / 100 + 2 * (1 / 2) * (1 / 8) / 10
    )
    assert transfer_seconds(gather, 8, assumptions) == pytest.approx(30e-6 + 7 / 100)
    assert transfer_seconds(gather, 16, assumptions) == pytest.approx(120e-6 + 14 / 100 + 1 / 10)


def projected(config: Config, gpus: int, **changed: float) -> Step:
    assumptions = replace(Assumptions(reference_images_per_s=10_000, reference_size=32), **changed)
    step = estimate_step(config, network(config, 7, False), ComputeWork(2.0, 100), gpus, assumptions)
    assert step is not None
    return step


def test_projected_step_time() -> None:
    config = small(batch_size=80)
    alone = projected(config, 1)
    assert alone.arithmetic == pytest.approx(80 * 2 / 10_000 * 1000) and alone.launches == pytest.approx(0.6)
    assert alone.total == alone.arithmetic  # there is no other rank
    eight = projected(config, 8)
    assert eight.arithmetic == pytest.approx(alone.arithmetic / 8)
    messages = eight.batch_norm + eight.gradients + eight.attention
    waiting = eight.launches / 3  # of the forward pass, in which SyncBatchNorm makes the host wait
    assert eight.total == pytest.approx(eight.arithmetic + waiting + messages)
    assert estimate_step(small(batch_size=15), network(config, 7, False), ComputeWork(2, 100), 8, Assumptions()) is None


@pytest.mark.parametrize(
    ("first", "synchronized", "changed"),
    [
        ("arithmetic", True, {"reference_images_per_s": 10.0}),
        ("BatchNorm over all ranks", True, {"node_latency_us": 1000.0}),
        ("gradients", False, {"node_gb_s": 0.1}),
        ("launches (too few samples per GPU)", False, {"launch_us": 1000.0}),
        ("decoding", True, {"decode_per_s": 1.0}),
    ],
)
def test_the_first_bottleneck(first: str, synchronized: bool, changed: dict[str, float]) -> None:
    config = small(batch_size=80, runtime__sync_batch_norm=synchronized)
    assert projected(config, 8, **changed).bottleneck == first


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_by_hand(frozen: bool) -> None:
    """Convolutions dominate: one pass forward and two backward, none backward in frozen parts."""
    model, macs = build_resnet("resnet10"), Counter[str]()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def count(module: nn.Conv2d, _: object, out: torch.Tensor, name: str = name) -> None:
                part = "branch" if name[:6] in ("layer2", "layer3", "layer4") else "extractor"
                macs[part] += out[0].numel() * module.weight[0].numel()

            module.register_forward_hook(count)
    model(torch.randn(1, 3, 64, 64))
    ours = (1 if frozen else 3) * macs["extractor"] + 3 * 2 * macs["branch"]
    expected = ours / (3 * macs["extractor"] + 3 * macs["branch"])
    assert measure_work(small(data__image_size=64), frozen).arithmetic == pytest.approx(expected, rel=0.05)


# --- the commands


@pytest.mark.slow
def test_scaling_command_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ranks", "1", "2", "--backbone", "resnet10", "--image-size", "32", "--batch-size", "9", "--steps", "2"]
    words += ["--repeat", "1", "--sync-batch-norm", "on", "--timeout", "120", "--json", str(tmp_path / "out.json")]
    main(["scaling", *words])
    assert "| 2 ranks |" in capsys.readouterr().out
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [(case["ranks"], case["batch_size"]) for case in cases] == [(1, 9), (1, 5), (2, 9)]
    for case in cases:
        (found,) = case["rounds"]
        assert found["step"] > found["communication"] + found["waiting"] >= 0
        assert (found["collectives"] > 0) == (case["ranks"] > 1)
    if cases[2]["rounds"][0]["on_wire"] is not None:
        gradients = 4 * sum(p.numel() for p in network(small(), 7, False).parameters())
        assert cases[2]["rounds"][0]["on_wire"] > 2 * gradients  # two ranks, a ring: each sends them once


def test_hanging_ranks_are_terminated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scaling", "--ranks", "2", "--timeout", "0.2"])
    assert "still running after 0.2 s; increase --timeout" in capsys.readouterr().err
    assert not [
        child for child in psutil.Process().children() if "benchmarks.scaling.worker" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["scaling", "--ranks", "4", "--batch-size", "7"], "--batch-size 7: 4 ranks need 2 samples each"),
        (["scaling", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["scaling", "--backbone", "resnet9"], "model.backbone"),
        (["comm-cost", "--backbone", "resnet10"], "pass --reference-images-per-s"),
        (["comm-cost", "--gpus", "12"], "--gpus 12: must be a multiple of --gpus-per-node 8"),
        (["comm-cost", "--node-gb-s", "0"], "--node-gb-s 0: must be greater than 0"),
    ],
)
def test_user_errors_are_one_line(words: list[str], output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and output in error and error.count("\n") == 1


def test_cost_command_prints_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone", "resnet10", "--image-size", "32", "--num-samples", "640", "--reference-images-per-s", "5000"]
    main(["comm-cost", *words, "--frozen", "--batch-sizes", "64", "--json", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert "| 10 steps as above |" in out and "- reference_images_per_s 5000:" in out
    assert "| 64 | all ranks | 512 |" in out and "invalid: needs 2 samples per rank (max. 32 GPUs)" in out
    report = json.loads((tmp_path / "out.json").read_text())
    assert [step["gpus"] for step in report["steps_ms"]] == [1, 8, 1, 8]
