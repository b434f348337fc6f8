"""Configurations of models on the Hugging Face hub, as far as they decide sizes, and their published parameter counts.

A count is of the model with its loss, tied weights once. Where a card gives a rounded figure, the exact one is the sum
over the tensors of the published weights (the `safetensors` line of the card), less what is stored twice.
"""

import json
from pathlib import Path

from transformers import AutoConfig

MODELS: dict[str, tuple[int, dict[str, object]]] = {
    # Card: 0.6B, 0.44B of them not embeddings; its Q8_0 file lists 596,049,920.
    "Qwen3-0.6B": (
        596_049_920,
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024}
        | {"intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
        | {"head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40960},
    ),
    # Card: 1.23B; 2,471,628,800 bytes of bf16 tensors.
    "Llama-3.2-1B": (
        1_235_814_400,
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048}
        | {"intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"head_dim": 64, "tie_word_embeddings": True, "max_position_embeddings": 131072},
    ),
    # "124M": 124,439,808, as nanoGPT prints it of OpenAI's weights.
    "gpt2": (
        124_439_808,
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024}
        | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    ),
    # KerasHub's summary of gemma3_1b.
    "gemma-3-1b-pt": (
        999_885_952,
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144}
        | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6}
        | {"max_position_embeddings": 32768},
    ),
    # Card: safetensors 1,418,270,720.
    "phi-1_5": (
        1_418_270_720,
        {"model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": 51200, "hidden_size": 2048}
        | {"intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32, "partial_rotary_factor": 0.5}
        | {"tie_word_embeddings": False, "max_position_embeddings": 2048},
    ),
    # Card: 1.48B in safetensors; OLMo-core prints the exact figure.
    "OLMo-2-0425-1B": (
        1_484_916_736,
        {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "vocab_size": 100352, "hidden_size": 2048}
        | {"intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16}
        | {"tie_word_embeddings": False, "max_position_embeddings": 4096},
    ),
    # Card: 362M; 290 tensors of 361,821,120 elements.
    "SmolLM2-360M": (
        361_821_120,
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 960}
        | {"intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5}
        | {"head_dim": 64, "tie_word_embeddings": True, "max_position_embeddings": 8192},
    ),
    # The paper's 110M are 109,482,240 with the pooler (590,592); the head for masked words has 622,650.
    "bert-base-uncased": (
        109_514_298,
        {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522, "hidden_size": 768}
        | {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "type_vocab_size": 2}
        | {"max_position_embeddings": 512},
    ),
    # fairseq's 124,696,665 and the row of token types (768) that the converted weights have.
    "roberta-base": (
        124_697_433,
        {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 50265, "hidden_size": 768}
        | {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "type_vocab_size": 1}
        | {"max_position_embeddings": 514, "pad_token_id": 1},
    ),
    # Card: 149M; safetensors 149,655,232.
    "ModernBERT-base": (
        149_655_232,
        {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "vocab_size": 50368}
        | {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12}
        | {"max_position_embeddings": 8192},
    ),
    # The paper's "about 220 million"; 222,903,552 in the published weights.
    "t5-base": (
        222_903_552,
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128, "d_model": 768}
        | {"d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}
        | {"is_encoder_decoder": True, "decoder_start_token_id": 0},
    ),
    # torchvision, ViT_B_16_Weights.IMAGENET1K_V1: num_params.
    "vit-base-patch16-224": (
        86_567_656,
        {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768, "image_size": 224}
        | {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
        | {"num_channels": 3, "id2label": {str(number): str(number) for number in range(1000)}},
    ),
    # Card: 7.24B in safetensors.
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096}
        | {"intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"sliding_window": 4096, "tie_word_embeddings": False, "max_position_embeddings": 32768},
    ),
}

_TINY: dict[str, object] = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
_TINY |= {"sliding_window_pattern": 2, "n_embd": 64, "n_layer": 2, "n_head": 4, "d_model": 64, "d_kv": 16, "d_ff": 96}
_TINY |= {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "image_size": 32, "patch_size": 8}
# On the CPU torch's fused attention has no dropout.
_STILL = dict.fromkeys(["attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate"], 0.0)
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def tiny(name: str) -> object:
    """The same architecture in small."""
    given = MODELS[name][1]
    small = {key: _TINY.get(key, value) for key, value in given.items()} | {"pad_token_id": 0} | _TOKENS | _STILL
    if given["model_type"] == "olmo2":
        small["num_key_value_heads"] = 4
    if given["model_type"] == "modernbert":
        small |= {"global_attn_every_n_layers": 2, "local_attention": 8}
    return AutoConfig.for_model(**small)


def write(folder: Path, **config: object) -> str:
    """A folder with a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
