"""The planner: golden plans, what it refuses and what it offers instead."""

from dataclasses import replace
from typing import Any

import pytest

from engine.config import Device, DType, Kernels, ModelKind, Quantization
from engine.model import attention
from engine.model.facts import ModelFacts
from launcher import memory
from launcher.cluster import Cluster, Node
from launcher.config import Action, LaunchConfig, PlanFormat, PlanOptions
from launcher.errors import Refused
from launcher.plan import DeploymentPlan
from launcher.show import as_json
from tests.launcher.samples import (
    GIB,
    LLAMA_8B,
    SMOLLM2,
    cluster_of,
    config_of,
    gpu_head,
    plan_for,
)

INVENTORY = cluster_of(
    Node(id="gpu-1", address="10.0.0.2", cpus=96, gpus=8, gpu_memory_bytes=80 * GIB),
    Node(id="gpu-2", address="10.0.0.3", cpus=96, gpus=8, gpu_memory_bytes=80 * GIB),
    address="10.0.0.1",
)


@pytest.mark.parametrize(
    ("name", "config", "facts", "cluster"),
    [
        ("one_rank_on_cpu", config_of(), SMOLLM2, cluster_of()),
        (
            "more_ranks_than_cpus",
            config_of(dp=3, frontend__count=2, name="busy"),
            SMOLLM2,
            cluster_of(cpus=2),
        ),
        ("two_workers_per_rank_on_gpus", config_of(dp=2, tp=2), LLAMA_8B, gpu_head(5)),
        (
            "an_inventory_with_the_head_alone_in_use",
            config_of(dp=2, engine__device=Device.cpu),
            SMOLLM2,
            INVENTORY,
        ),
    ],
)
def test_golden_plan(
    assert_golden, name: str, config: LaunchConfig, facts: ModelFacts, cluster: Cluster
):
    assert_golden(f"{name}.json", as_json(plan_for(config, facts, cluster, ["HF_HOME"])))


def engines(plan: DeploymentPlan) -> list[Any]:
    return [process for process in plan.processes if process.rank is not None]


def refusal(config: LaunchConfig, *where: Any) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        plan_for(config, *where)
    return str(refused.value), refused.value.hint


# Device and type


def test_gpus_are_taken_where_there_are_any():
    assert plan_for(config_of(), SMOLLM2, gpu_head(1)).settings.device is Device.cuda
    assert plan_for(config_of(), SMOLLM2, cluster_of()).settings.device is Device.cpu


def test_gpus_that_the_topology_cannot_use_choose_nothing():
    cluster = cluster_of(Node(id="other", cpus=8, memory_bytes=32 * GIB, gpus=1))
    assert plan_for(config_of(), SMOLLM2, cluster).settings.device is Device.cpu


def test_a_model_that_computes_nothing_needs_no_gpu():
    config = config_of(dp=4, model__kind=ModelKind.dummy)
    assert plan_for(config, SMOLLM2, gpu_head(1)).settings.device is Device.cpu


@pytest.mark.parametrize(
    ("checkpoint", "cluster", "dtype"),
    [
        ("bfloat16", cluster_of(), DType.bfloat16),
        ("float16", gpu_head(1), DType.float16),
        ("float16", cluster_of(), DType.float32),
        ("float32", gpu_head(1), DType.float32),
    ],
)
def test_the_type_is_the_checkpoints(checkpoint: str, cluster: Cluster, dtype: DType):
    facts = replace(SMOLLM2, dtype=checkpoint)
    assert plan_for(config_of(), facts, cluster).settings.dtype is dtype


def test_native_kernels_are_for_cpus():
    config = config_of(engine__kernels=Kernels.native)
    assert plan_for(config).settings.kernels is Kernels.native
    refused = refusal(config, SMOLLM2, gpu_head(1))
    assert refused == ("engine.kernels needs engine.device=cpu: native", "engine.kernels=auto")


def test_float16_is_for_gpus():
    config = config_of(engine__dtype=DType.float16)
    assert plan_for(config, SMOLLM2, gpu_head(1)).settings.dtype is DType.float16
    assert refusal(config) == ("engine.dtype needs a GPU: float16", "engine.dtype=float32")


# Placement


def test_cpus_are_shared_evenly_and_too_few_are_a_warning():
    plan = plan_for(config_of(dp=2, tp=3, action=Action.plan), SMOLLM2, cluster_of(cpus=16))
    assert {worker.num_threads for each in engines(plan) for worker in each.workers} == {2}
    assert plan.warnings == ()
    plan = plan_for(config_of(dp=3), SMOLLM2, cluster_of(cpus=2))
    assert [each.workers[0].num_threads for each in engines(plan)] == [1, 1, 1]
    assert plan.warnings == ("3 ranks should have 3 CPUs on head, which has 2: all will be slower",)


def test_threads_that_the_user_sets_are_asked_for():
    plan = plan_for(config_of(engine__threads=12))
    assert engines(plan)[0].workers[0].num_threads == 12
    assert plan.groups[0].bundles[0].resources == {"CPU": 12}
    assert plan.warnings == ("1 rank should have 12 CPUs on head, which has 8: all will be slower",)


def test_what_other_work_holds_is_left_alone():
    cluster = gpu_head(4, in_use={"GPU": 1, "CPU": 60})
    plan = plan_for(config_of(dp=3), SMOLLM2, cluster)
    assert [each.workers[0].devices for each in engines(plan)] == [(1,), (2,), (3,)]
    assert engines(plan)[0].workers[0].num_threads == 1


def test_workers_that_cannot_share_the_heads_are_a_warning():
    plan = plan_for(config_of(tp=2))
    assert plan.warnings == ("tp=2 does not divide the model's 9 heads",)


def test_too_few_gpus_are_refused_with_what_fits():
    message, hint = refusal(config_of(dp=4), SMOLLM2, gpu_head(3))
    assert message == (
        "dp=4 tp=1 topology=head_only engine.device=auto does not fit:"
        " room for 3 of 4 ranks on the head; a rank takes 1 GPU\n"
        "    head: 3 GPUs: room for 3 ranks"
    )
    assert hint == "dp=3, or engine.device=cpu"


def test_fewer_workers_are_offered_too():
    message, hint = refusal(config_of(dp=3, tp=2), LLAMA_8B, gpu_head(4, in_use={"GPU": 1}))
    assert "room for 1 of 3 ranks on the head; a rank takes 2 GPUs on one node" in message
    assert "head: 4 GPUs, 1 in use by other work: room for 1 rank" in message
    assert hint == "dp=1, or tp=1, or engine.device=cpu"  # where ranks share the weights


def test_ranks_on_the_head_are_mended_with_the_ranks():
    _, hint = refusal(config_of(dp=4, topology__dp_local=4), SMOLLM2, gpu_head(3))
    assert hint == "dp=3 topology.dp_local=3, or engine.device=cpu"


def test_gpus_that_the_topology_does_not_use_are_named():
    message, hint = refusal(config_of(engine__device=Device.cuda), SMOLLM2, INVENTORY)
    assert message == (
        "dp=1 tp=1 topology=head_only engine.device=cuda does not fit:"
        " room for 0 of 1 rank on the head; a rank takes 1 GPU\n"
        "    head: no GPU: lacks 1 GPU for a rank\n"
        "    gpu-1, gpu-2: 8 GPUs: not used by topology=head_only"
    )
    assert hint == "topology=auto backend=ray, or engine.device=cpu"


# Cache and memory


def blocks(config: LaunchConfig, *where: Any) -> int:
    return plan_for(config, *where).settings.cache.num_blocks


def test_a_cpu_cache_takes_a_twenty_fifth_of_the_memory_shared_by_the_ranks():
    one, two = blocks(config_of()), blocks(config_of(dp=2))
    block_bytes = 16 * 2 * 30 * 3 * 64 * 2
    assert one == 32 * GIB // 25 // block_bytes
    assert two == 32 * GIB // 50 // block_bytes


@pytest.mark.parametrize(
    ("engine", "head_dim"),
    [
        ({}, 80),
        ({"engine__kernels": Kernels.native}, 80),
        ({"engine__kernels": Kernels.torch}, 72),
    ],
)
def test_a_cpu_cache_counts_heads_as_the_kernels_pad_them(engine: dict[str, Any], head_dim: int):
    num_blocks = blocks(config_of(**engine), replace(SMOLLM2, head_dim=72))
    assert num_blocks == 32 * GIB // 25 // (16 * 2 * 30 * 3 * head_dim * 2)


def test_a_cpu_cache_is_no_larger_than_all_requests_need():
    config = config_of(profile__max_num_seqs=2, profile__max_model_len=100)
    assert blocks(config) == 2 * 7


def test_a_cache_holds_a_request_of_useful_length_however_little_memory_there_is():
    plan = plan_for(config_of(), SMOLLM2, cluster_of(memory_bytes=2 * GIB))
    assert plan.settings.cache.num_blocks == plan.settings.max_model_len // 16
    assert plan.settings.max_model_len == 2 * GIB // 25 // (360 * 2**10) * 16
    plan = plan_for(config_of(dp=2), SMOLLM2, cluster_of(memory_bytes=2 * GIB))
    assert plan.settings.max_model_len == 2048
    plan = plan_for(config_of(profile__max_model_len=8192), SMOLLM2, cluster_of(memory_bytes=GIB))
    assert plan.settings.cache.num_blocks == 512


def test_a_gpu_cache_takes_what_weights_and_a_step_leave_of_nine_tenths():
    num_blocks = blocks(config_of(), LLAMA_8B, gpu_head(1))
    cache_gib = num_blocks * 16 * LLAMA_8B.kv_bytes_per_token("bfloat16", padded=False) / GIB
    assert 80 * 0.9 - 15 - 4 < cache_gib < 80 * 0.9 - 15 - 1
    of_two_gpus = blocks(config_of(tp=2), LLAMA_8B, gpu_head(2))
    assert of_two_gpus > 2.2 * num_blocks


@pytest.mark.parametrize("cluster", [cluster_of(memory_bytes=0), gpu_head(1, gib=0)])
def test_unknown_memory_means_a_cache_of_a_gib(cluster: Cluster):
    assert blocks(config_of(), SMOLLM2, cluster) == GIB // (360 * 2**10)


def test_a_cache_of_the_users_own_size():
    plan = plan_for(config_of(profile__kv_cache_bytes="36MiB"))
    assert plan.settings.cache.num_blocks == 102
    assert plan.settings.max_model_len == 1632


def test_a_request_of_the_longest_length_must_fit_alone():
    config = config_of(profile__kv_cache_bytes="1MiB", profile__max_model_len=64)
    assert refusal(config) == (
        "profile.kv_cache_bytes must hold a request of profile.max_model_len (64 tokens),"
        " 1.4 MiB: 1MiB",
        "profile.kv_cache_bytes=2MiB",
    )
    assert refusal(config_of(profile__kv_cache_bytes="1000")) == (
        "profile.kv_cache_bytes must hold a block of 16 tokens, 360.0 KiB: 1000",
        "profile.kv_cache_bytes=1MiB",
    )


def test_no_request_is_longer_than_the_model_can_read():
    assert refusal(config_of(profile__max_model_len=10000)) == (
        "profile.max_model_len must be at most the model's limit (8192): 10000",
        "profile.max_model_len=8192",
    )


def test_weights_larger_than_the_memory_are_refused_with_figures():
    message, hint = refusal(config_of(dp=3), LLAMA_8B, cluster_of(memory_bytes=17 * GIB))
    assert message == (
        "dp=3 puts 3 ranks on head, which has 17.0 GiB of memory:"
        " a rank takes 15.0 GiB of weights (bfloat16), 256.0 MiB of cache,"
        " 1021.2 MiB for its process and to compute (ranks share the weights)"
    )
    assert hint == "dp=1, or engine.quantization=int8"
    config = config_of(engine__dtype=DType.float32)
    hint = refusal(config, LLAMA_8B, cluster_of(memory_bytes=30 * GIB))[1]
    assert hint == "engine.dtype=bfloat16, or engine.quantization=int8"


def test_ranks_on_a_cpu_count_their_weights_once_where_kernels_map_them():
    small = cluster_of(memory_bytes=20 * GIB)
    assert len(engines(plan_for(config_of(dp=2), LLAMA_8B, small))) == 2
    config = config_of(dp=2, engine__kernels=Kernels.torch)
    message, hint = refusal(config, LLAMA_8B, small)
    assert "ranks share" not in message
    assert hint == "dp=1"


def test_weights_of_8_bits_take_a_little_more_than_half_of_16():
    facts = replace(LLAMA_8B, tie_word_embeddings=False)
    half = facts.weight_bytes("bfloat16") / 2
    embedding = facts.vocab_size * facts.hidden_size
    assert (
        half + embedding
        < facts.packed_bytes("bfloat16", quantized=True)
        < (1.01 * half + embedding)
    )
    config = config_of(engine__quantization=Quantization.int8)
    plan = plan_for(config, LLAMA_8B, cluster_of(memory_bytes=12 * GIB))
    assert plan.settings.quantization is Quantization.int8


@pytest.mark.parametrize(
    ("engine", "cluster", "expected"),
    [
        (
            {"engine__kernels": Kernels.torch},
            cluster_of(),
            (
                "engine.quantization needs the C kernels, not engine.kernels=torch: int8",
                "engine.kernels=auto, or engine.quantization=none",
            ),
        ),
        (
            {},
            gpu_head(1),
            (
                "engine.quantization needs engine.device=cpu: int8",
                "engine.quantization=none, or engine.device=cpu",
            ),
        ),
    ],
    ids=["torch", "cuda"],
)
def test_weights_of_8_bits_are_refused_where_there_are_none(engine, cluster, expected):
    config = config_of(engine__quantization=Quantization.int8, **engine)
    assert refusal(config, SMOLLM2, cluster) == expected


def test_many_ranks_of_a_small_model_are_refused_for_their_processes():
    message, hint = refusal(config_of(dp=1000), SMOLLM2, cluster_of(memory_bytes=24 * GIB))
    assert message.endswith(
        "45.0 MiB of cache, 358.0 MiB for its process and to compute (ranks share the weights)"
    )
    assert hint == "dp=60"


def test_ranks_that_compute_nothing_take_their_processes_alone():
    config = config_of(dp=1000, model__kind=ModelKind.dummy)
    plan = plan_for(config, SMOLLM2, cluster_of(memory_bytes=24 * GIB))
    assert len(engines(plan)) == 1000
    message, hint = refusal(config, SMOLLM2, cluster_of(memory_bytes=8 * GIB))
    assert message.endswith("a rank that computes nothing takes 16.0 MiB")
    assert hint == "dp=512"


def test_weights_larger_than_a_gpu_are_refused_with_the_workers_that_fit():
    message, hint = refusal(config_of(), LLAMA_8B, gpu_head(8, gib=16))
    assert message == (
        "a rank does not fit into tp=1 GPU of 16.0 GiB on head: 15.0 GiB of weights (bfloat16),"
        " 256.0 MiB of cache, 1.8 GiB per GPU to compute"
    )
    assert hint == "tp=2, or tp=4, or tp=8, or engine.device=cpu"


def test_a_cache_larger_than_the_memory_is_refused():
    config = config_of(profile__kv_cache_bytes="40GiB")
    assert refusal(config)[1] == "profile.kv_cache_bytes=auto"
    assert refusal(config, SMOLLM2, gpu_head(1, gib=24))[1] == "profile.kv_cache_bytes=auto"


# Digest


def test_what_the_deployment_is_not_does_not_change_the_digest():
    plan = plan_for(config_of())
    for config in (
        config_of(action=Action.plan),
        config_of(plan=PlanOptions(format=PlanFormat.json)),
        config_of(backend__start_deadline_s=5.0),
    ):
        assert plan_for(config) == plan


@pytest.mark.parametrize(
    "inputs",
    [
        {"config": config_of(name="other")},
        {"config": config_of(dp=2)},
        {"config": config_of(tp=3)},
        {"config": config_of(drain_s=1.0)},
        {"config": config_of(engine__seed=1)},
        {"config": config_of(engine__dtype=DType.float32)},
        {"config": config_of(engine__threads=1)},
        {"config": config_of(engine__kernels=Kernels.torch)},
        {"config": config_of(engine__quantization=Quantization.int8)},
        {"config": config_of(model__kind=ModelKind.tiny)},
        {"config": config_of(model__seed=1)},
        {"config": config_of(profile__max_num_seqs=1)},
        {"config": config_of(profile__max_model_len=100)},
        {"config": config_of(profile__max_num_batched_tokens=1024)},
        {"config": config_of(profile__block_size=8)},
        {"config": config_of(profile__kv_cache_bytes="10MiB")},
        {"config": config_of(profile__prefix_caching=False)},
        {"config": config_of(frontend__port=1)},
        {"config": config_of(frontend__count=2)},
        {"config": config_of(health__silence_s=2.0)},
        {"config": config_of(coordinator__interval_s=1.0)},
        {"facts": replace(SMOLLM2, rope_theta=1.0)},
        {"cluster": cluster_of(address="10.0.0.1")},
        {"cluster": cluster_of(cpus=7)},
        {"cluster": cluster_of(Node(id="other"))},
        {"environment": ["HF_HOME"]},
    ],
    ids=str,
)
def test_any_input_changes_the_digest(inputs: dict[str, Any]):
    plan = plan_for(config_of())
    assert plan_for(**{"config": config_of(), **inputs}).digest != plan.digest


def test_the_planner_reckons_with_the_scores_that_attention_computes_at_once():
    assert memory.GROUP_SCORES == attention.MAX_GROUP_SCORES
