#include "attention_plan.h"

#include <algorithm>
#include <ostream>

namespace qwen3moe {

namespace {

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// A sequence of n rows starts at tile floor(rows before it / tile) + its index; so no two share a tile, and this many
// tiles hold them all (attention_prefill.cu finds them the same way).
int32_t prefill_tiles(const qwen3moe_paged_attention_shape& shape, int32_t rows) {
    const int64_t group_size = shape.num_heads / shape.num_kv_heads;
    return static_cast<int32_t>(shape.num_tokens * group_size / rows) + shape.num_seqs;
}

void plan_decode(const qwen3moe_paged_attention_shape& shape, AttentionPlan& plan) {
    const int32_t tile_tokens = DecodeConfig::kRows / (shape.num_heads / shape.num_kv_heads);
    const int32_t longest = DecodeConfig::kMaxRowTiles * tile_tokens;
    // With no more tokens than sequences (a decode step) everything is the decode kernel's: one launch in all.
    const bool decode_only = shape.num_tokens <= std::max(shape.num_seqs, longest);
    // A single sequence is a prompt, and the decode kernel's launch would be in vain: 2 us.
    plan.max_decode_tokens = decode_only ? shape.num_tokens : shape.num_seqs == 1 ? 0 : longest;

    // Every row tile has a token. Splitting at total / target adds at most one item per row tile; a sequence that is
    // split at all has at most twice total / target items.
    const int64_t row_tiles =
        std::min<int64_t>(shape.num_tokens, int64_t{shape.num_seqs} * ceil_div(plan.max_decode_tokens, tile_tokens));
    plan.target_items = std::max(1, DecodeConfig::kTargetCtas / shape.num_kv_heads);
    plan.decode_items = static_cast<int32_t>(plan.target_items + row_tiles);
    plan.partial_items = 2 * plan.target_items;
}

void plan_prefill(const qwen3moe_paged_attention_shape& shape, AttentionPlan& plan) {
    if (shape.num_tokens <= plan.max_decode_tokens) return;
    const int64_t group_size = shape.num_heads / shape.num_kv_heads;
    const int64_t large_ctas = shape.num_tokens * group_size / 128 * shape.num_kv_heads;
    const int32_t rows = large_ctas >= PrefillConfig::kMinCtas ? 128 : 64;
    plan.prefill_rows = plan.is_hopper ? PrefillConfig::kHopperRows : rows;
    plan.prefill_tiles = prefill_tiles(shape, plan.prefill_rows);
}

void plan_cluster(const qwen3moe_paged_attention_shape& shape, AttentionPlan& plan) {
    if (!plan.is_hopper || plan.prefill_rows != 0 || shape.num_seqs > DecodeConfig::kMaxClusterSeqs) return;
    if (shape.max_blocks * shape.block_size > DecodeConfig::kMaxClusterKeys) return;
    const int64_t row_tiles = int64_t{shape.num_tokens} * shape.num_kv_heads;
    int32_t splits = DecodeConfig::kMaxClusterSplits;
    while (splits >= DecodeConfig::kMinClusterSplits && splits * row_tiles > DecodeConfig::kMaxClusterCtas) splits /= 2;
    plan.cluster_splits = splits >= DecodeConfig::kMinClusterSplits ? splits : 0;
}

void plan_workspace(const qwen3moe_paged_attention_shape& shape, AttentionPlan& plan) {
    const size_t items = static_cast<size_t>(plan.partial_items) * shape.num_kv_heads;
    const size_t rows = items * DecodeConfig::kRows;
    plan.partial_out_offset = 0;
    plan.partial_max_sum_offset = plan.partial_out_offset + rows * shape.head_dim * sizeof(float);
    plan.finished_offset = plan.partial_max_sum_offset + rows * 2 * sizeof(float);
    plan.next_tile_offset = plan.finished_offset + items * sizeof(uint64_t);
    plan.workspace_size = plan.next_tile_offset + sizeof(int32_t);
}

}  // namespace

AttentionPlan plan_attention(const qwen3moe_paged_attention_shape& shape, bool is_hopper) {
    AttentionPlan plan{};
    plan.is_hopper = is_hopper;
    plan_decode(shape, plan);
    plan_prefill(shape, plan);
    plan_cluster(shape, plan);
    plan_workspace(shape, plan);
    return plan;
}

std::ostream& operator<<(std::ostream& stream, const AttentionPlan& plan) {
    return stream << "AttentionPlan(max_decode_tokens=" << plan.max_decode_tokens
                  << ", decode_items=" << plan.decode_items << ", target_items=" << plan.target_items
                  << ", partial_items=" << plan.partial_items << ", cluster_splits=" << plan.cluster_splits
                  << ", is_hopper=" << plan.is_hopper << ", prefill_rows=" << plan.prefill_rows
                  << ", prefill_tiles=" << plan.prefill_tiles << ", workspace_size=" << plan.workspace_size << ")";
}

}  // namespace qwen3moe
