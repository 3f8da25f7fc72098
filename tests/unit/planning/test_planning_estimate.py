"""Memory, update and weight sync, held against real small models and formulas worked out by hand."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from aipo.planning.estimate import memory_of, sync_of, trainer_memory, update_of
from aipo.planning.hardware import A100, H100, H200, Cluster, Efficiency, gathered_s, ring_latency_s
from aipo.planning.model import PRESETS, find_model, read_shape
from aipo.planning.setting import Setting, Training
from aipo.planning.step import plan_step, scaling, stops_at
from aipo.planning.workload import Spread, Trajectory, Turn, Workload

SEVEN = PRESETS["qwen2.5-7b"]
IDEAL = Efficiency(hop_s=0.0, near_hop_s=0.0)
SMALL = Workload(prompts_per_step=16, response_tokens=Spread(500, 0.7, 4000))


def on(gpus: int, **changes: Any) -> Setting:
    return Setting(model=SEVEN, cluster=Cluster(H100, gpus), **({"efficiency": IDEAL} | changes))


TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_parameters_and_optimiser_bytes_are_those_of_a_real_model(
    config: type, tied: bool, tmp_path: Path
) -> None:
    extra = {"head_dim": 16} if config is Qwen3Config else {}
    model = AutoModelForCausalLM.from_config(config(**TINY, **extra, tie_word_embeddings=tied))
    model.config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path / "config.json")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimiser.step()
    moments = [t for state in optimiser.state.values() for name, t in state.items() if name != "step"]
    memory = trainer_memory(Setting(model=shape, cluster=Cluster(H100, 1), workload=SMALL), 1e9)

    def size(tensors: list[torch.Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    assert memory.trainer.weights == size(list(model.parameters()))
    assert memory.trainer.gradients == size([p.grad for p in model.parameters() if p.grad is not None])
    assert memory.trainer.optimiser == size(moments)


def test_the_cache_of_a_real_model_has_the_planned_bytes(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**TINY, head_dim=16)).to(torch.bfloat16)
    model.config.save_pretrained(tmp_path)
    cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 10 * find_model(str(tmp_path)).kv_bytes_per_token


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As the model cards' safetensors count them.
    [
        ("qwen2.5-1.5b", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert find_model(name).parameters == parameters


def alike(number: int, tokens: int) -> list[Trajectory]:
    return [Trajectory(i, 1, (Turn(tokens - 1),)) for i in range(number)]


def test_an_update_is_six_flops_a_parameter_and_token_and_eight_with_checkpointing() -> None:
    flat = replace(SEVEN, heads=0)  # without attention, and without its matrices
    one = Cluster(A100, 1)
    tokens = 64 * 100
    for checkpointing, factor in ((False, 6), (True, 8)):
        training = Training(minibatches=1, gradient_checkpointing=checkpointing, recompute_log_probs=False)
        setting = Setting(model=flat, cluster=one, training=training, efficiency=IDEAL)
        update = update_of(setting, alike(64, 100))
        assert update.compute_s == pytest.approx(factor * flat.multiplied * tokens / (A100.bf16_flops * 0.35))
        assert (update.gather_s, update.imbalance_s, update.old_log_probs_s) == (0.0, 0.0, 0.0)


def test_attention_is_the_lower_triangle_of_two_products() -> None:
    n, width = 1000, SEVEN.layers * SEVEN.heads * SEVEN.head_dim
    pairs = n * n / 2
    assert SEVEN.forward_flops(n, n * n) == 2 * SEVEN.multiplied * n + 2 * (2 * width * pairs)


def test_an_update_halves_with_twice_the_gpus_until_it_is_all_gather() -> None:
    # Short rollouts: no single one is longer than a share, so only the gathering is left.
    rollouts, training = alike(65536, 100), Training(minibatches=4, recompute_log_probs=False)
    times = [update_of(on(n, training=training), rollouts) for n in (8, 16, 32, 1024, 4096, 8192)]
    for few, many in pairwise(times[:3]):
        assert many.total_s == pytest.approx(few.total_s / 2, rel=0.02)
        assert many.gather_s == 0.0
    assert times[4].gather_s > times[4].compute_s
    assert times[5].total_s == pytest.approx(times[4].total_s, rel=0.05)  # stopped scaling


def test_an_update_is_never_shorter_than_its_longest_rollout() -> None:
    rollouts = [*alike(63, 100), *alike(1, 10_000)]
    training = Training(minibatches=1, recompute_log_probs=False)
    alone = update_of(on(1, training=training), alike(1, 10_000))
    spread = update_of(on(64, training=training), rollouts)
    assert spread.compute_s + spread.imbalance_s == pytest.approx(alone.compute_s)


def test_gathering_is_bytes_over_the_slower_of_nvlink_and_a_node_s_adapters() -> None:
    near, far = Cluster(H100, 8), Cluster(H100, 64)
    assert gathered_s(near, 8e9, 8, IDEAL) == pytest.approx(7e9 / (450e9 * 0.75))
    assert gathered_s(far, 64e9, 64, IDEAL) == pytest.approx(63e9 / (400e9 * 0.75))
    assert gathered_s(far, 64e9, 1, IDEAL) == 0.0
    assert ring_latency_s(far, 64, Efficiency()) == pytest.approx(7 * 2e-6 + 7 * 10e-6)
    assert ring_latency_s(far, 1, Efficiency()) == 0.0


def test_weights_travel_as_two_bytes_a_parameter() -> None:
    sync = sync_of(on(8), 1)
    size = 2 * SEVEN.parameters
    assert sync == pytest.approx(size * 7 / 8 / (450e9 * 0.75) + 2 * size / (3350e9 * 0.7))
    state = 2 * 12 * SEVEN.parameters / 8 / (64e9 * 0.75)
    assert sync_of(on(8, training=Training(offload=True)), 1) == pytest.approx(sync + state)


def test_what_does_not_fit_says_how_many_gpus_do() -> None:
    with pytest.raises(
        ValueError, match=r"on 1 x h100 does not fit: the update needs 176 GB .*at least 4 GPUs"
    ):
        plan_step(Setting(cluster=Cluster(H100, 1)))
    plan_step(Setting(cluster=Cluster(H100, 4), workload=SMALL), search=False)
    with pytest.raises(ValueError, match="no number of GPUs helps"):
        memory_of(on(8, workload=SMALL, training=Training(microbatch_tokens=10**7)))
    with pytest.raises(ValueError, match="--tensor-parallel 3 must divide 8 GPUs and 28 attention heads"):
        memory_of(on(8, workload=SMALL, training=Training(tensor_parallel=3)))


def test_each_measure_against_a_full_gpu_frees_memory() -> None:
    def used(training: Training, gpus: int = 8) -> float:
        setting = Setting(cluster=Cluster(H200, gpus), workload=SMALL, training=training)
        return trainer_memory(setting, 1e12).update

    whole = used(Training())
    assert used(Training(chunked_logits=True)) < whole
    assert used(Training(gradient_checkpointing=False)) > whole
    assert used(Training(), 16) < whole == used(Training(shard_gpus=8), 16)
    held = [Training(offload=offload) for offload in (False, True)]
    large = Setting(cluster=Cluster(H200, 8), workload=SMALL)
    resident = [memory_of(replace(large, training=training))[0] for training in held]
    assert resident[1].rollout_cache == pytest.approx(resident[0].rollout_cache + 12 * SEVEN.parameters / 8)


def test_a_large_model_is_split_over_more_gpus_of_a_replica() -> None:
    chunked = on(32, workload=SMALL, training=Training(chunked_logits=True))
    big = memory_of(replace(chunked, model=PRESETS["qwen2.5-32b"]))
    small = memory_of(on(8, workload=SMALL))
    assert big[1] > small[1] == 1


def test_the_rows_of_a_step_add_up_and_agents_are_charged() -> None:
    step = plan_step(Setting(workload=SMALL))
    assert sum(step.rows.values()) == pytest.approx(step.total_s)
    assert all(seconds >= 0 for seconds in step.rows.values())
    phase = step.rows["decode"] + step.rows["prefill"] + step.rows["consult"]
    assert phase == pytest.approx(step.phase.wall_s)
    assert step.gpus == 8 + 2
    alone = plan_step(Setting(workload=replace(SMALL, consultations={})))
    assert (alone.rows["consult"], alone.gpus, alone.agents.servers_needed) == (0.0, 8, 0)


def test_the_number_of_servers_is_the_smallest_that_keeps_the_policy_busy() -> None:
    busy = replace(SMALL, consultations={"verify": 2.0}, latency_s=Spread.around(0.2, 0.3, 5))
    setting = Setting(workload=busy)
    setting = replace(setting, service=replace(setting.service, concurrency=1, tokens_s=400))
    needed = plan_step(setting).agents.servers_needed
    assert needed is not None and needed > 2

    def exposed(servers: int) -> float:
        step = plan_step(replace(setting, service=replace(setting.service, servers=servers)), search=False)
        return step.agents.exposed_s / step.instant.decode_s

    assert exposed(needed) < 0.05 <= exposed(needed - 1)


def test_agents_that_are_too_slow_by_themselves_have_no_such_number() -> None:
    slow = plan_step(Setting(workload=replace(SMALL, latency_s=Spread.around(40, 0.1, 60))))
    assert slow.agents.servers_needed is None
    assert slow.agents.exposed_unlimited_s > 0.05 * slow.instant.decode_s


def test_scaling_names_what_does_not_fit_and_where_it_stops() -> None:
    rows = scaling(Setting(workload=SMALL), (1, 4, 8, 64), search=False)
    assert rows[0].step is None and "at least 4 GPUs" in rows[0].problem
    efficiencies = [row.efficiency for row in rows[1:]]
    assert efficiencies[0] == 1.0 and efficiencies == sorted(efficiencies, reverse=True)
    stop = stops_at(rows)
    assert stop is not None and stop.efficiency < 0.5 and stop.limit
    fixed = replace(SMALL, response_tokens=Spread(500, 0.0, 4000), consultations={})
    even = scaling(Setting(workload=fixed), (4, 8), search=False)[1]
    assert "tail" not in even.limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "mamba"}', "model_type 'mamba'"),
        ('{"model_type": "qwen2", "num_attention_heads": 4}', "hidden_size = None"),
        ("[1]", "model_type None"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_a_configuration_that_cannot_be_planned_for_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"neither a preset \(qwen2.5-0.5b.*nor a folder"):
        find_model("gpt-9")


def test_planning_needs_the_standard_library_only() -> None:
    code = (
        "import sys, aipo\nbefore = set(sys.modules)\n"
        "import aipo.planning.step, aipo.planning.measured\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert new <= set(sys.stdlib_module_names) | {'aipo'}, new - set(sys.stdlib_module_names)\n"
        "assert not [m for m in sys.modules if m.startswith('aipo.') and not m.startswith('aipo.planning')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
