"""What the server tells Prometheus is what happened."""

from __future__ import annotations

from server_process import MODEL

ON = {"ignore_eos": True}
REASON = 'qwen3moe_requests_total{{finish_reason="{}"}}'


def test_totals_and_times(server, client, engine):
    before = server.until_idle()
    prompt = "Metrics are counted " * 4
    asked = dict(model=MODEL, prompt=prompt, max_tokens=10, temperature=0, extra_body=ON)
    for _ in range(3):
        client.completions.create(**asked)
    client.completions.create(**asked | {"stop": "e"})
    after = server.until_idle()
    grown = {name: after[name] - before[name] for name in after if not name.endswith("_created")}
    num_prompt = len(engine.encode(prompt))
    assert grown["qwen3moe_prompt_tokens_total"] == 4 * num_prompt
    assert grown["qwen3moe_prefix_hit_tokens_total"] == 3 * (num_prompt // 16 * 16)
    assert (grown[REASON.format("length")], grown[REASON.format("stop")]) == (3, 1)
    made = grown["qwen3moe_generation_tokens_total"]
    assert 31 <= made <= 40
    counts = ("time_to_first_token", "queue", "request")
    assert [grown[f"qwen3moe_{name}_seconds_count"] for name in counts] == [4, 4, 4]
    assert grown["qwen3moe_inter_token_seconds_count"] == made - 4
    sums = [grown[f"qwen3moe_{name}_seconds_sum"] for name in ("queue", "time_to_first_token", "request")]
    assert 0 < sums[0] < sums[1] < sums[2]
    assert sums[1] + grown["qwen3moe_inter_token_seconds_sum"] <= sums[2] * 1.05
    assert grown['qwen3moe_request_seconds_bucket{le="+Inf"}'] == 4


def test_gauges_of_a_busy_moment(server, client):
    stream = client.completions.create(
        model=MODEL, prompt="She was", n=3, max_tokens=600, stream=True, extra_body=ON, seed=1
    )
    for _ in range(50):
        next(stream)
    found = server.metrics()
    stream.close()
    assert (found["qwen3moe_requests_running"], found["qwen3moe_requests_waiting"], found["qwen3moe_ready"]) == (
        3,
        0,
        1,
    )
    used, total = found["qwen3moe_kv_blocks_used"], found["qwen3moe_kv_blocks"]
    assert total == 128 and 3 <= used < total and found["qwen3moe_kv_usage_ratio"] == used / total
    assert server.until_idle()["qwen3moe_kv_usage_ratio"] == 0


def test_preemptions(server, client):
    """Eight sequences of 400 tokens in a pool of 2,048: some are computed again, and nobody sees it."""
    before = server.until_idle()["qwen3moe_preemptions_total"]
    answer = client.completions.create(
        model=MODEL, prompt="It", n=8, max_tokens=400, temperature=0, extra_body=ON | {"seed": 1}
    )
    assert len({choice.text for choice in answer.choices}) == 1 and answer.usage.completion_tokens == 3200
    assert server.until_idle()["qwen3moe_preemptions_total"] > before
