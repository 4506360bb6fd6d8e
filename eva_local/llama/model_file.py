"""A GGUF file that llama.cpp has loaded: its weights, its metadata, its tokeniser."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eva_local.config.elsewhere import is_gguf
from eva_local.config.specs import LoadSettings, part_names
from eva_local.errors import ModelError
from eva_local.llama.backend import calling, can_offload, library, reason
from eva_local.models.header import TEMPLATES


class ModelFile:
    """What llama.cpp holds of a file; `handle` and `vocab` are its pointers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle: Any = None
        self.vocab: Any = None
        self._llama = library()

    def load(
        self, settings: LoadSettings, progress: Callable[[float], None], *, vocabulary_only: bool
    ) -> None:
        """Load it, or its vocabulary only; raise ModelError where llama.cpp cannot.

        `progress` is told the share of the weights that is loaded.
        """
        llama = self._llama
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = vocabulary_only
        parameters.n_gpu_layers = settings.n_gpu_layers
        if settings.main_gpu >= 0 and can_offload():
            # Else llama.cpp shares the layers out among all there are.
            parameters.split_mode = llama.LLAMA_SPLIT_MODE_NONE
            parameters.main_gpu = settings.main_gpu
        if settings.batch_invariant:
            # Both round differently in larger batches. The variable is read once in a process.
            parameters.use_extra_bufts = False
            os.environ["GGML_CPU_TILED_MM"] = "0"
        if settings.tensor_split:
            shares = (ctypes.c_float * llama.llama_max_devices())(*settings.tensor_split)
            parameters.tensor_split = shares
        with calling() as call:
            # llama.cpp stops loading where the callback says False.
            told = llama.llama_progress_callback(lambda share, _: call.attempt(progress, share))
            parameters.progress_callback = told
            path = os.fsencode(self.path)
            self.handle = llama.llama_model_load_from_file(path, parameters) or None
        if self.handle is None:
            # Of several files llama.cpp need not name the one that is wrong.
            parts = map(self.path.with_name, part_names(self.path.name))
            wrong = next((part for part in parts if not is_gguf(part)), self.path)
            why = reason(call.lines)
            remedy = "pull or convert the file again"
            if "unknown model architecture" in why:
                remedy = "it needs a newer llama.cpp than this version of eva-local has"
            raise ModelError(f"{wrong}: {why}; {remedy}")
        self.vocab = llama.llama_model_get_vocab(self.handle)

    def close(self) -> None:
        """Free the memory."""
        if self.handle is not None:
            self._llama.llama_model_free(self.handle)
        self.handle = None

    def metadata(self, key: str) -> str | None:
        """Return a value of the file, as text."""
        read, handle = self._llama.llama_model_meta_val_str, self.handle
        size = read(handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        read(handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Return the chat template; of several, the one that is for conversations without tools."""
        return next(filter(None, map(self.metadata, TEMPLATES)), None)

    def tokenize(self, text: bytes) -> list[int]:
        """Return llama.cpp's tokens of valid UTF-8: no BOS, control tokens not parsed."""
        # Its own each time: a thread may read a prompt while another one steps.
        buffer = np.empty(len(text) + 2, dtype=np.int32)
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = self._llama.llama_tokenize(
            self.vocab, text, len(text), pointer, len(buffer), False, False
        )
        if count < 0:
            raise ModelError(f"{self.path}: llama.cpp could not tokenise {len(text)} bytes")
        return buffer[:count].tolist()  # type: ignore[no-any-return]

    def refuse_unless_causal(self) -> None:
        """Raise ModelError for a model that predicts no next token."""
        llama = self._llama
        architecture = self.metadata("general.architecture")
        if (
            self.metadata(f"{architecture}.attention.causal") == "false"
            or llama.llama_model_has_encoder(self.handle)
            or not llama.llama_model_has_decoder(self.handle)
            or llama.llama_model_is_diffusion(self.handle)
        ):
            raise ModelError(
                f"{self.path}: a '{architecture}' model predicts no next token; "
                "use a language model (decoder only)"
            )
