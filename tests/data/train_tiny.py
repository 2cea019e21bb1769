"""Train the tiny Qwen3-MoE checkpoint of the tests from plain text.

Trains a byte-level BPE tokenizer and transformers' own Qwen3MoeForCausalLM from scratch and writes the checkpoint in
the published layout (tiny_layout.py). It knows nothing of this project's packages, so the checkpoint is independent
evidence for them. Runs on a CPU, and on a CUDA device where there is one.

Legend: T tokens, H hidden_size, E num_experts, I moe_intermediate_size.
"""

import argparse
import copy
import math
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from tiny_layout import CONFIG, SPECIAL_TOKENS, save_checkpoint

PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS
ENDS = {"eos_token_id": [CONFIG["eos_token_id"], CONFIG["bos_token_id"]], "pad_token_id": CONFIG["bos_token_id"]}
WINDOW = 2048  # tokens of a training sequence
AUX_LOSS_COEF = 0.02  # of training alone: twenty times the published one, for the experts of a short run to even out


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with Qwen's normalizer and pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = CONFIG["vocab_size"] - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    if (got := tokenizer.get_vocab_size()) != CONFIG["vocab_size"]:
        raise ValueError(f"vocabulary: got {got} tokens, expected {CONFIG['vocab_size']}: train on more text")
    return tokenizer


def chats(documents: list[str], every: int = 6) -> list[str]:
    """Chats cut from the text: the user gives a paragraph's first sentence, the assistant the rest of it."""
    paragraphs = [part for document in documents for part in document.split("\n\n") if 200 < len(part) < 1500]
    pairs = [re.split(r"(?<=[.!?]) (?=[A-Z])", part, maxsplit=1) for part in paragraphs[::every]]
    turns = (IM_START + "user\n", IM_END + "\n" + IM_START + "assistant\n", IM_END + "\n")
    return [turns[0] + pair[0] + turns[1] + pair[1] + turns[2] for pair in pairs if len(pair) == 2]


def encode(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    """All documents as one row of token ids, each ended by <|endoftext|>."""
    encodings = tokenizer.encode_batch([document + END_OF_TEXT for document in documents])
    return torch.tensor([token_id for encoding in encodings for token_id in encoding.ids])


def dense_experts(self, hidden_states, top_k_index, top_k_weights):
    """Every expert on every token, [T, H] -> [T, H]: wasteful, but two plain products on any device in any dtype."""
    scores = top_k_weights.new_zeros(len(top_k_weights), self.num_experts)
    scores = scores.scatter(1, top_k_index, top_k_weights)  # [T, E], zero where not routed
    projected = F.linear(hidden_states, self.gate_up_proj.flatten(0, 1))  # [T, E * 2I]
    gate, up = projected.unflatten(1, (self.num_experts, -1)).chunk(2, dim=-1)  # [T, E, I] each
    weighted = self.act_fn(gate) * up * scores.unsqueeze(-1)
    return F.linear(weighted.flatten(1), self.down_proj.transpose(0, 1).flatten(1)).to(hidden_states.dtype)


def new_model(seed: int, device: str) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
    config = Qwen3MoeConfig(**{key: value for key, value in CONFIG.items() if key != "torch_dtype"})
    model = Qwen3MoeForCausalLM(config).float().to(device)
    model.config._experts_implementation = "dense"
    return model.train()


def add_dropout(model: Qwen3MoeForCausalLM, probability: float) -> None:
    """Dropout where GPT-2 has it: on the embeddings and on what each attention and each MLP adds to the residual."""

    def drop(module, args, output):
        return F.dropout(output, probability, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def random_windows(tokens: torch.Tensor, num: int) -> torch.Tensor:
    starts = torch.randint(len(tokens) - WINDOW, (num, 1), device=tokens.device)
    return tokens[starts + torch.arange(WINDOW, device=tokens.device)]


def training_loss(model: Qwen3MoeForCausalLM, input_ids: torch.Tensor) -> torch.Tensor:
    """Next-token loss plus the load-balancing loss of each layer by itself."""
    output = model(input_ids=input_ids, output_router_logits=True, use_cache=False)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())
    num_experts, top_k = CONFIG["num_experts"], CONFIG["num_experts_per_tok"]
    balance = sum(load_balancing_loss_func((logits.float(),), num_experts, top_k) for logits in output.router_logits)
    return loss + AUX_LOSS_COEF * balance / len(output.router_logits)


def rounded(model: Qwen3MoeForCausalLM) -> Qwen3MoeForCausalLM:
    """A float32 copy whose weights have the bfloat16 values that will be saved."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@torch.no_grad()
def heldout_loss(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, length: int = 1024) -> float:
    """Mean negative log likelihood, in nats per token, over windows that do not see each other."""
    total = 0.0
    for window in tokens.split(length):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / (len(tokens) - math.ceil(len(tokens) / length))


def new_optimizer(model: Qwen3MoeForCausalLM, weight_decay: float) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=matrices[0].is_cuda)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """A hundred steps of warm-up, then a cosine down to a hundredth of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train_step(model: Qwen3MoeForCausalLM, optimizer: torch.optim.Optimizer, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        loss = training_loss(model, input_ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def train(model, train_tokens: torch.Tensor, heldout_tokens: torch.Tensor, options) -> Qwen3MoeForCausalLM:
    """Train to the end of the steps or the minutes; return the rounded model that was best on the held-out text."""
    optimizer = new_optimizer(model, options.weight_decay)
    best, best_loss, start, step, progress = None, math.inf, time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options.learning_rate, step, progress)
        loss = train_step(model, optimizer, random_windows(train_tokens, options.batch_tokens // WINDOW))
        step, seconds = step + 1, time.monotonic() - start
        progress = max(step / options.steps, seconds / (60 * options.minutes))
        if step % options.eval_every == 0 or progress >= 1.0:
            candidate = rounded(model)
            candidate_loss = heldout_loss(candidate, heldout_tokens)
            print(
                f"step {step} at {seconds:.0f} s: training loss {loss:.3f}, held-out loss {candidate_loss:.3f}",
                flush=True,
            )
            if candidate_loss < best_loss:
                best, best_loss = candidate, candidate_loss
    return best


@torch.no_grad()
def expert_shares(model: Qwen3MoeForCausalLM, tokens: torch.Tensor) -> list[str]:
    """How evenly each layer's experts are used: the least and the most used expert's share of the routes."""
    output = model(input_ids=tokens[None], output_router_logits=True, use_cache=False)
    shares = []
    for logits in output.router_logits:
        routes = logits.topk(CONFIG["num_experts_per_tok"]).indices.flatten()
        counts = routes.bincount(minlength=CONFIG["num_experts"]) / len(routes)
        shares.append(f"{counts.min():.3f}-{counts.max():.3f}")
    return shares


def sample(model: Qwen3MoeForCausalLM, tokenizer: Tokenizer, prompt: str, **how) -> str:
    input_ids = torch.tensor([tokenizer.encode(prompt).ids], device=model.device)
    return tokenizer.decode(model.generate(input_ids, max_new_tokens=120, **ENDS, **how)[0].tolist())


def report(model: Qwen3MoeForCausalLM, tokenizer: Tokenizer, heldout_text: str, heldout_tokens: torch.Tensor) -> None:
    loss = heldout_loss(model, heldout_tokens)
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    print(f"held out, with the weights as saved: {len(heldout_tokens)} tokens, loss {loss:.4f} nats per token,")
    bits = loss * len(heldout_tokens) / len(heldout_text) / math.log(2)
    print(f"perplexity {math.exp(loss):.2f} per token, {bits:.3f} bits per character")
    print("least-most used expert's share, by layer (even is 0.0625):", *expert_shares(model, heldout_tokens[:2048]))
    torch.manual_seed(0)
    for prompt in (heldout_text[:60].rpartition(" ")[0], "She was very happy", "In those days"):
        print(f"\n--- greedy ---\n{sample(model, tokenizer, prompt, do_sample=False)}")
        print(f"\n--- sampled ---\n{sample(model, tokenizer, prompt, do_sample=True, temperature=0.6, top_k=20)}")
    chat = f"{IM_START}user\nHe came into the room.{IM_END}\n{IM_START}assistant\n"
    print(f"\n--- chat, greedy ---\n{sample(model, tokenizer, chat, do_sample=False)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="text; documents end in <|endoftext|>")
    parser.add_argument("--heldout", type=Path, required=True, help="text that is not trained on, of the same kind")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=5.0, help="stop by then, whatever the steps")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--eval-every", type=int, default=100, help="steps between looks at the held-out text")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = "".join(path.read_text(encoding="utf-8") for path in options.corpus)
    heldout_text = options.heldout.read_text(encoding="utf-8")
    tokenizer = train_tokenizer(text.replace(END_OF_TEXT, "\n"))
    documents = [document for document in text.split(END_OF_TEXT) if document.strip()]
    train_tokens = encode(tokenizer, documents + chats(documents)).to(device)
    heldout_tokens = torch.tensor(tokenizer.encode(heldout_text).ids, device=device)
    print(
        f"{len(text):,} characters, {len(train_tokens):,} training tokens, {len(heldout_tokens):,} held out; {device}"
    )
    model = new_model(options.seed, device)
    add_dropout(model, options.dropout)
    model = train(model, train_tokens, heldout_tokens, options)
    save_checkpoint(model, tokenizer, options.out)
    report(model, tokenizer, heldout_text, heldout_tokens)


if __name__ == "__main__":
    main()
