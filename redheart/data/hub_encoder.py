"""A Hugging Face encoder by hub id or folder, as `data/encoders.py` reads one."""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from redheart.core.config import FEATURE_WIDTH
from redheart.core.errors import BadInput
from redheart.core.files import sha256_file

_MAX_TOKENS = 256
"""Where the configuration names none."""
_LEAST_TOKENS = 3
"""A window is one token between the two special ones, or more."""
_ANSWERS_WITHIN_S = 5.0


class HubModel:
    """A model and its tokenizer, read with transformers."""

    def __init__(self, source: str, *, label: str, with_tokens: bool):
        """Read it from a hub id or a folder; `with_tokens` lets the tokenizer count for its digest.

        Raises:
            BadInput: it cannot be found or read, reads less than a token at once, or its tokenizer lacks what stands
                before and behind a text.
        """
        from huggingface_hub.utils import logging as hub_logging
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        # Its bar for reading weights would stand beside ours and say nothing that a user can act on.
        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        try:
            here = Path(source).is_dir() or not reaches_hub()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=here)
            self._model: Any = AutoModel.from_pretrained(source, dtype=torch.float32, local_files_only=here).eval()
            config, tokenizer = self._model.config, self._tokenizer
            self.width = int(config.hidden_size)
            self.max_tokens = int(getattr(config, "max_position_embeddings", _MAX_TOKENS))
            # RoBERTa and its kin count positions from behind the padding's number.
            tables = [getattr(module, "position_embeddings", None) for module in self._model.modules()]
            padded = [item for item in tables if isinstance(item, nn.Embedding) and item.padding_idx is not None]
            beyond = [item.num_embeddings - item.padding_idx - 1 for item in padded if item.padding_idx is not None]
            self.max_tokens = min([self.max_tokens, *beyond])
            # A model of pictures, or one with a decoder, can be read and fails at its first text.
            token_11 = torch.zeros(1, 1, dtype=torch.int64)
            with torch.inference_mode():
                self.layers(token_11, torch.ones_like(token_11))
            if self.max_tokens < _LEAST_TOKENS:
                raise ValueError(f"it reads {self.max_tokens} tokens at once, fewer than {_LEAST_TOKENS}")
            self.first_token = _first_of(tokenizer, "cls_token", "bos_token")
            self.last_token = _first_of(tokenizer, "sep_token", "eos_token")
        # The libraries do not check what they read: a damaged folder ends in whatever they came upon.
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise BadInput(
                "the encoder cannot be loaded",
                where="--features.encoder",
                got=f"{label} ({lines[0].strip() if lines else type(error).__name__})",
                expected="`minilm`, `hash`, or the hub id or folder of a Hugging Face encoder",
                hint="check the name and the network; where its folder lies now is said by --features.encoder, or by "
                "--encoder to commands on a finished run",
            ) from error
        self.padding_token: int = tokenizer.pad_token_id or 0
        self.unknown_token: int | None = tokenizer.unk_token_id
        self.digest = _weights_digest(self._model)
        if with_tokens:
            # How it cuts texts into tokens is part of what an encoder is.
            backend = getattr(tokenizer, "backend_tokenizer", None)
            rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
            self.digest = hashlib.sha256(f"{self.digest}{rules}".encode()).hexdigest()[:16]

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self._model.to(device)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without the special ones around them."""
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def layers(self, ids_BS: Tensor, mask_BS: Tensor) -> Sequence[Tensor]:
        """States (B, S, W) of the embeddings and of every layer, or of the last layer where the width is 768."""
        all_layers = self.width < FEATURE_WIDTH
        output = self._model(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=all_layers)
        layers: Sequence[Tensor] = output.hidden_states if all_layers else (output.last_hidden_state,)
        return layers


def reaches_hub() -> bool:
    """Whether the hub answers, asked once: without a network its own retries take three quarters of a minute."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if getproxies() or not address.hostname:
        return True
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_ANSWERS_WITHIN_S).close()
    except OSError:
        return False
    return True


def _first_of(tokenizer: Any, *names: str) -> int:
    """The number of the first of these special tokens that there is."""
    found: list[int] = [token for name in names if (token := getattr(tokenizer, f"{name}_id")) is not None]
    if not found:
        raise ValueError(f"its tokenizer has no {' and no '.join(names)}")
    return found[0]


def _weights_digest(model: Any) -> str:
    """The same of a hub id and of a folder with its files."""
    from huggingface_hub import try_to_load_from_cache

    name, file = str(model.config._name_or_path), "model.safetensors"
    weights: object = Path(name) / file
    if not Path(name).is_dir():
        weights = try_to_load_from_cache(name, file, revision=getattr(model.config, "_commit_hash", None))
    if isinstance(weights, str | Path) and Path(weights).is_file():
        return sha256_file(Path(weights))[:16]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
