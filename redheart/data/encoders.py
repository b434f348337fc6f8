"""Frozen sentence encoders: texts in, one state per token out.

Shape suffixes: S tokens of a text, W width of the encoder (768 or 384), H layers, L summary numbers, B windows.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from redheart.core.config import BUILT_IN_ENCODERS, FEATURE_WIDTH, Device
from redheart.core.device import chosen_device
from redheart.core.errors import BadInput
from redheart.data import minilm
from redheart.data.hub_encoder import HubModel
from redheart.data.scripts import foreign_script, has_words_of, letters_alone

MINILM_LAYERS = 7
"""Its embeddings and six layers; a summary has the mean of each."""
MINILM, HASH = BUILT_IN_ENCODERS
_MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# The window that MiniLM was trained on; its 512 positions reach further than what it has learned to read.
_WINDOW_TOKENS = 256
_BATCH_TOKENS = 8192


class Encoded(NamedTuple):
    """One text as an encoder reads it."""

    states_SW: np.ndarray
    """Token states, S at least 1; 768 wide, or 384."""
    summary_L: np.ndarray
    """Means of the states of every layer over the tokens, side by side; empty where the states are 768 wide."""


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
    """Every word is a fixed pseudo-random unit-variance vector: no weights, for tests; as `TransformerEncoder`."""

    identity = "hash:1"

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        nothing_L = np.zeros(0, dtype=np.float32)
        return [Encoded(np.stack([_word_vector(word) for word in text.split() or [""]]), nothing_L) for text in texts]

    def unread(self, texts: Sequence[str]) -> list[str | None]:
        return [None] * len(texts)


def _word_vector(word: str) -> np.ndarray:
    digest = hashlib.shake_128(word.lower().strip(".,!?").encode()).digest(FEATURE_WIDTH)
    # Uniform bytes have variance (256^2 - 1) / 12.
    return ((np.frombuffer(digest, dtype=np.uint8) - 127.5) / 73.9).astype(np.float32)


class TransformerEncoder:
    """A transformer encoder, read in windows where a text is longer than one.

    A model 384 wide gives token states averaged over its middle and last two layers, and the means of all its layers,
    which become the other 384 of the features; a model 768 wide gives the token states of its last layer alone.
    """

    def __init__(self, model: HubModel | minilm.MiniLM, *, label: str, device: Device = "auto"):
        if model.width not in (FEATURE_WIDTH, FEATURE_WIDTH // 2):
            raise BadInput(
                "the encoder's states have the wrong width",
                where=f"--features.encoder {label}",
                got=model.width,
                expected=f"{FEATURE_WIDTH}, or {FEATURE_WIDTH // 2} beside the pooled state",
                hint="choose an encoder of that hidden size",
            )
        self._model = model
        self._device = chosen_device(device)
        model.to(self._device)
        self._content_tokens = min(_WINDOW_TOKENS, model.max_tokens) - 2
        self._is_minilm = label == MINILM
        # Where a folder lies is not what an encoder is.
        self.identity = f"{MINILM if self._is_minilm else 'encoder'}:{model.digest}"
        """Two encoders of one identity give the same states."""

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """States and summary of every text, float32."""
        windows = [
            (row, tokens[start : start + self._content_tokens])
            for row, tokens in enumerate(self._model.tokens(texts))
            for start in range(0, max(1, len(tokens)), self._content_tokens)
        ]
        # Windows of similar length share a batch, so that little is computed for padding.
        batches: list[list[int]] = [[]]
        for index in sorted(range(len(windows)), key=lambda index: len(windows[index][1])):
            batches[-1].append(index)
            if (len(windows[index][1]) + 2) * len(batches[-1]) >= _BATCH_TOKENS:
                batches.append([])
        states: dict[int, np.ndarray] = {}
        for batch in filter(None, batches):
            states |= zip(batch, self._encode_windows([windows[index][1] for index in batch]), strict=True)
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for index, (row, _) in enumerate(windows):
            parts[row].append(states[index])
        return [self._encoded(np.concatenate(part, axis=1)) for part in parts]

    def unread(self, texts: Sequence[str]) -> list[str | None]:
        """The script of every text that this encoder cannot be expected to make sense of; None for the others."""
        scripts = [foreign_script(text) for text in texts]
        if self._is_minilm:
            # Its tokenizer has the letters of many scripts, which it has never learned to read.
            return scripts
        found: list[str | None] = [None] * len(texts)
        rows = {row: script for row, script in enumerate(scripts) if script}
        letters = [letters_alone(texts[row]) for row in rows]
        tokens_of = self._model.tokens(letters) if letters else []
        for (row, script), tokens, text in zip(rows.items(), tokens_of, letters, strict=True):
            if not has_words_of(script, tokens, text, unknown=self._model.unknown_token):
                found[row] = script
        return found

    def _encode_windows(self, windows: Sequence[list[int]]) -> list[np.ndarray]:
        """States of every window, (H, S, W)."""
        model = self._model
        longest = max(map(len, windows)) + 2
        ids_BS = torch.full((len(windows), longest), model.padding_token)
        mask_BS = torch.zeros(len(windows), longest, dtype=torch.long)
        for position, window in enumerate(windows):
            tokens = [model.first_token, *window, model.last_token]
            ids_BS[position, : len(tokens)] = torch.tensor(tokens)
            mask_BS[position, : len(tokens)] = 1
        layers = model.layers(ids_BS.to(self._device), mask_BS.to(self._device))
        states_HBSW = torch.stack([layer.float().cpu() for layer in layers]).numpy()
        # An empty text is its first special token.
        spans = [slice(1, 1 + len(window)) if window else slice(0, 1) for window in windows]
        return [states_HBSW[:, position, span] for position, span in enumerate(spans)]

    def _encoded(self, states_HSW: np.ndarray) -> Encoded:
        if self._model.width == FEATURE_WIDTH:
            return Encoded(states_HSW[-1], np.zeros(0, dtype=np.float32))
        # The last layer tells topics apart; those before it hold more of what the targets ask for. Ridge on the mean
        # over tokens and layers, two folds of the training records: emotion KL .0767, Bentham R2 .33; with the last
        # layer alone .0789 and .30.
        layers = (len(states_HSW) // 2, len(states_HSW) - 2, len(states_HSW) - 1)
        return Encoded(states_HSW[list(layers)].mean(0), states_HSW.mean(1).ravel())


Encoder = HashEncoder | TransformerEncoder


def open_encoder(name: str, *, identity: str | None = None, device: Device = "auto") -> Encoder:
    """The encoder called `minilm` or `hash`, or one of Hugging Face by hub id or folder; `identity` is what it must be.

    Raises:
        BadInput: it cannot be found, is another one, or its states are neither 384 (minilm) nor 768 wide.
    """
    encoder: Encoder
    if name == HASH:
        encoder = HashEncoder()
    elif name == MINILM and (folder := minilm.installed_folder()):
        encoder = TransformerEncoder(minilm.MiniLM(folder), label=MINILM, device=device)
    else:
        source = _MINILM_HUB_ID if name == MINILM else name
        model = HubModel(source, label=name, with_tokens=name != MINILM)
        encoder = TransformerEncoder(model, label=name, device=device)
    if identity is not None and encoder.identity != identity:
        raise BadInput(
            "the encoder is not the one that the model was trained on",
            where=name,
            got=encoder.identity,
            expected=identity,
            hint="install or restore the encoder with these weights, or say where it is with --encoder",
        )
    return encoder
