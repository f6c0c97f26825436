"""The config of a GPT-2: one frozen record with Hugging Face's field names, its presets, and its table of parameters.

Reading an HF `config.json` filters and validates; it never translates. Nothing here imports JAX, so that flags
are checked before anything is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxgpt import checks
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.notes import note

Activation = Literal[
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "swish", "tanh",
]  # fmt: skip

# The embedding table of the largest model anyone trains is far below these; a config above them is a mistake or
# an attack, and must be refused before memory is asked for.
LIMITS = {"vocab_size": 2**24, "n_positions": 2**24, "n_embd": 2**17, "n_inner": 2**20, "n_layer": 2**12}
LABELS_LIMIT = 2**16


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of a GPT-2 model; field names, defaults and meanings are those of HF's `GPT2Config`.

    `bias`, `position_embedding` and `norm_position` exist only for training from scratch. A model without biases can
    be written to an HF folder, with zeros for them; one where the two others differ from their defaults cannot.

    Attributes:
        vocab_size: rows of the embedding table, V.
        n_positions: longest context in tokens.
        n_embd, n_layer, n_head: D, L, H; D must be a multiple of H.
        n_inner: width of the feed-forward layer, F; None means 4 D.
        activation_function: the feed-forward layer's, by HF's names.
        resid_pdrop, embd_pdrop, attn_pdrop: dropout on both residual branches, embeddings, attention weights.
        layer_norm_epsilon: added to the variance.
        initializer_range: standard deviation of initial weights; the two projections into the residual stream
            get it divided by sqrt(2 L) (Radford et al. 2019, section 2.3).
        scale_attn_weights: divide scores by sqrt(K).
        scale_attn_by_inverse_layer_idx: also divide them by layer index + 1.
        reorder_and_upcast_attn: compute scores in f32. Scores are always computed in f32 here, so that both
            values give what True asks for.
        tie_word_embeddings: the LM head is the embedding table, transposed.
        bos_token_id, eos_token_id, pad_token_id: special ids; None where there is none.
        bias: biases in all linear layers and layer norms.
        position_embedding: "learned", or the fixed "sinusoidal" table of Vaswani et al. 2017 (with embeddings
            scaled by sqrt(D), as there).
        norm_position: "pre" as GPT-2, or "post" as the original transformer (and no final layer norm).
        labels: names of the N scores that a head gives each token, as HF's `GPT2ForSequenceClassification` has it:
            classes, or one reward or value. None: there is no such head.
        tokenizer_vocab_size: rows of the embedding table from here up stand for no text and are never chosen, as those
            with which nanoGPT pads 50257 to 50304. None: there are no such rows.

    Raises:
        UsageError: a value out of range; the message names the field, the value and what is valid.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    pad_token_id: int | None = None
    bias: bool = True
    position_embedding: Literal["learned", "sinusoidal"] = "learned"
    norm_position: Literal["pre", "post"] = "pre"
    labels: tuple[str, ...] | None = None
    tokenizer_vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "tokenizer_vocab_size"):
            if getattr(self, name) is not None or name not in ("n_inner", "tokenizer_vocab_size"):
                limit = LIMITS.get(name, self.n_embd if name == "n_head" else self.vocab_size)
                self._set(name, checks.whole(name, getattr(self, name), 1, limit))
        if self.n_embd % self.n_head:
            raise UsageError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            self._set_real(name, lambda x: 0 <= x < 1, "a dropout rate, in [0, 1)")
        for name in ("layer_norm_epsilon", "initializer_range"):
            self._set_real(name, lambda x: 1e-30 <= x <= 1e30, "a number from 1e-30 to 1e30")  # f32 has their squares
        for name, valid in CHOICES.items():
            checks.choice(name, getattr(self, name), valid)
        for name in SWITCHES:
            self._set(name, checks.flag(name, getattr(self, name)))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self._set_ids(name, several=name == "eos_token_id")
        if (names := self.labels) is not None:
            if not isinstance(names, list | tuple) or not names or not all(map(_is_text, names)):
                raise checks.refusal("labels", names, "texts, at least one")
            if len(set(names)) < len(names):
                raise checks.refusal("labels", names, "distinct texts")
            self._set("labels", tuple(names))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _set_real(self, name: str, valid: Callable[[float], bool], wanted: str) -> None:
        given = getattr(self, name)
        if not valid(value := checks.real(name, given, wanted)):
            raise checks.refusal(name, given, wanted)
        self._set(name, value)

    def _set_ids(self, name: str, *, several: bool) -> None:
        value, wanted = getattr(self, name), "a token id or null"
        if several and checks.several(value):
            found = checks.ids(name, value, wanted)
            self._set(name, tuple(checks.whole(name, token, wanted=wanted) for token in found))
        elif value is not None:
            self._set(name, checks.whole(name, value, wanted=wanted))

    @property
    def head_dim(self) -> int:
        """K, the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """F, the width of the feed-forward layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-text ids that the vocabulary has; HF's default id is beyond a small vocabulary."""
        return tuple(token for token in _as_tuple(self.eos_token_id) if token < self.vocab_size)

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """Return a named configuration: one of `PRESETS`.

        Raises:
            UsageError: there is no such preset.
        """
        if not isinstance(name, str) or name not in PRESETS:
            hint = did_you_mean(str(name), PRESETS)
            raise UsageError(f"no preset {checks.shown(name)}; valid are {', '.join(PRESETS)}{hint}")
        return PRESETS[name]

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> GPTConfig:
        """Read the contents of an HF `config.json`.

        Every key that transformers' GPT-2 reads is honoured or refused by name. Others are left alone, and noted
        unless published configs are known to have them.

        Raises:
            UsageError: not a GPT-2 config, a bad value, or a feature that is not supported.
        """
        checks.instance("the model's config", hf, Mapping, "a table, as config.json holds it")
        if not _equal(hf.get("model_type", "gpt2"), "gpt2"):
            raise UsageError(f"model_type is {checks.shown(hf['model_type'])}; only 'gpt2' can be read")
        for key, only in HF_REQUIRED.items():
            if not _equal(hf.get(key, only), only):
                raise UsageError(f"{key} is {checks.shown(hf[key])}; only {only!r} is supported")
        named: dict[str, Any] = {}
        unread = []
        for key, value in hf.items():
            checks.text("a key of the model's config", key)
            name = HF_ALIASES.get(key, key)
            if name in HF_FIELDS:
                if not _equal(named.setdefault(name, value), value):
                    raise UsageError(f"{key} is {checks.shown(value)}, but {name} is {checks.shown(named[name])}")
            elif name not in HF_IRRELEVANT and name not in HF_REQUIRED and not name.startswith("_"):
                unread.append(f"{checks.shown(key)}{did_you_mean(key, HF_FIELDS).rstrip('?')}")
        if _equal(hf.get("n_ctx"), named.get("n_positions")) and "'n_ctx'" in unread:
            unread.remove("'n_ctx'")  # an old name beside the one that is read
        if unread:
            note(f"keys of the model's config that no GPT-2 reads are left alone: {', '.join(unread)}")
        if isinstance(named.get("eos_token_id"), list):
            named["eos_token_id"] = tuple(named["eos_token_id"])
        return cls(**named, labels=_read_labels(hf))

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of an HF `config.json`; `from_hf` of it gives this config back, but for `bias`.

        HF's GPT-2 always has biases; in a model that had none they are zeros.

        Raises:
            UsageError: a field that HF's GPT-2 does not have differs from its default.
        """
        for name in ("position_embedding", "norm_position"):
            value, default = getattr(self, name), DEFAULTS[name]
            if value != default:
                raise UsageError(f"{name} is {value!r}; HF's GPT-2 can only be {default!r}, so it can't be exported")
        fields = {name: getattr(self, name) for name in HF_FIELDS}
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        if self.labels is None:
            return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **fields}
        names = {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }
        return {"model_type": "gpt2", "architectures": [SCORING], **fields, **names}


def _read_labels(hf: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the labels of a config whose architecture has a head for them; others list labels without meaning."""
    architectures = hf.get("architectures")
    if not isinstance(architectures, list) or SCORING not in architectures:
        return None
    count = hf.get("num_labels", 2)
    if not _is_int(count) or not 1 <= count <= LABELS_LIMIT:
        raise UsageError(f"num_labels is {count!r}; it must be a whole number from 1 to {LABELS_LIMIT}")
    named = hf.get("id2label", {str(i): f"LABEL_{i}" for i in range(count)})
    try:
        return tuple(named[str(i)] for i in range(len(named)))
    except (KeyError, TypeError):
        raise UsageError(f"id2label is {named!r}; it must give a name to each id from 0 up") from None


def _equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except ValueError:  # arrays
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_tuple(ids: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return ids if isinstance(ids, tuple) else () if ids is None else (ids,)


DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
OWN_FIELDS = ("bias", "position_embedding", "norm_position", "labels", "tokenizer_vocab_size")
HF_FIELDS = tuple(name for name in DEFAULTS if name not in OWN_FIELDS)
SCORING = "GPT2ForSequenceClassification"
VALUE = ("value",)
"""Labels of a policy whose head gives values, as PPO trains it: what is exported is the language model alone."""
CHOICES: dict[str, tuple[str, ...]] = {
    "activation_function": get_args(Activation),
    "position_embedding": ("learned", "sinusoidal"),
    "norm_position": ("pre", "post"),
}
SWITCHES = tuple(name for name, default in DEFAULTS.items() if isinstance(default, bool))
HF_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# What transformers' GPT-2, or its masks, caches and files, read too, and what alone is the same without it.
HF_REQUIRED = {
    "add_cross_attention": False,
    "attention_chunk_size": None,
    "fusion_config": None,
    "is_causal": True,
    "is_encoder_decoder": False,
    "layer_types": None,
    "pruned_heads": {},
    "quantization_config": None,
    "sliding_window": None,
    "transformers_weights": None,
}
# Keys of most published GPT-2 configs, of which a note would say nothing, and which do not change the function from
# tokens to logits.
HF_IRRELEVANT = frozenset(
    """
    architectures auto_map chunk_size_feed_forward cross_attention_hidden_size dtype embd_layer_norm
    finetuning_task gradient_checkpointing id2label is_decoder label2id model_type num_labels
    output_attentions output_hidden_states output_past prefix problem_type return_dict return_dict_in_generate
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params tie_encoder_decoder tokenizer_class torch_dtype torchscript transformers_version
    use_bfloat16 use_cache use_return_dict
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores remove_invalid_values repetition_penalty sep_token_id suppress_tokens temperature
    tf_legacy_loss top_k top_p typical_p
    """.split()
)

_GPT2 = GPTConfig()
_CHARS = GPTConfig(vocab_size=65, bos_token_id=None, eos_token_id=None, bias=False)


def _sized(base: GPTConfig, n_layer: int, n_head: int, n_embd: int, **changes: Any) -> GPTConfig:
    return dataclasses.replace(base, n_layer=n_layer, n_head=n_head, n_embd=n_embd, **changes)


PRESETS: dict[str, GPTConfig] = {
    "gpt2": _GPT2,
    "gpt2-medium": _sized(_GPT2, 24, 16, 1024),
    "gpt2-large": _sized(_GPT2, 36, 20, 1280),
    "gpt2-xl": _sized(_GPT2, 48, 25, 1600),
    "distilgpt2": _sized(_GPT2, 6, 12, 768),
    "shakespeare-char": _sized(_CHARS, 6, 6, 384, n_positions=256, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2),
    "shakespeare-char-cpu": _sized(_CHARS, 4, 4, 128, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}
