"""Models of transformers on sequences that are spread over ranks.

    context = periplus.transformers.Context(periplus.Group.from_torch(), strategy="ring", layout="zigzag")
    model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation=context.name)
    loss = model(**context.shard(tokens, cu_seqlens)).loss      # tokens [tokens], the whole packed sequence, on every rank
    loss.backward()

Ranks share one model as they do in data-parallel training, but the loss of a rank is its part of the mean over all labels of the sequence:
losses and gradients are to be summed over ranks. What averages gradients (DistributedDataParallel, FSDP) gets `loss * group.size`.
"""

import functools
import inspect
import itertools
import sys

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ._library import InvalidArgument
from .attention import Attention
from .torch import attention

IGNORED = -100  # transformers' label of tokens that have none

# What models pass on that says nothing about which scores there are; everything else that _attend does not know is refused.
_UNRELATED = {"cache_position", "labels", "logits_to_keep", "num_items_in_batch", "output_attentions", "output_hidden_states",
              "output_router_logits", "position_embeddings", "position_ids", "return_dict", "shift_labels", "use_cache"}
_LAYERS = {"full_attention", "sliding_attention", "attention"}

_contexts = itertools.count()


def _padding(*_, attention_mask=None, **__):
    """For AttentionMaskInterface, without which models drop masks unseen."""
    return None if attention_mask is None or attention_mask.all() else attention_mask


def _longest_of_one_rotation(config):
    """The longest document whose rotary embedding does not depend on the longest position that a rank has, or None if none does."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {part.get("rope_type", part.get("type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds.isdisjoint({"dynamic", "longrope"}):
        return None
    original = getattr(config, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    return original or config.max_position_embeddings


def _refusal_of_module(name):
    """The same for the models of one file."""
    module = sys.modules.get(name)
    if module is None:
        return None
    classes = [each for each in vars(module).values() if inspect.isclass(each) and getattr(each, "__module__", None) == name]
    for model in classes:
        if model.__name__.endswith(("ForCausalLM", "LMHeadModel")) and issubclass(model, torch.nn.Module):
            if "position_ids" not in inspect.signature(model.forward).parameters:
                return f"{model.__name__} takes no position_ids: it would count the tokens of each rank from 0, across documents"
    if any(hasattr(each, "create_position_ids_from_input_ids") for each in (module, *classes)):
        return f"models of {name} count positions from their padding token on, not from 0"
    return None


@functools.cache
def _refused_positions(attention):
    """Why models with this class of attention would not see the positions of shard(), or None. Looks at models that stand in one file with
    it, or with what it was derived from: of others it does not know."""
    names = [each.__module__ for each in attention.__mro__ if issubclass(each, torch.nn.Module) and not each.__module__.startswith("torch.")]
    return next((refusal for refusal in map(_refusal_of_module, names) if refusal is not None), None)


class Context:
    """Who works together and how, and which documents they work on now. `options` are those of Attention: strategy, layout, ...

    Registers an attention function under `name`, for attn_implementation. It takes packed rows (a batch of 1) without padding masks,
    dropout or caches, and hears from the model about grouped heads, scale, sliding windows, caps of scores and sinks. Only it sees other
    ranks: tokens must not meet anywhere else in the model (state spaces, convolutions, attention of the model's own, or losses of
    a router, which then are those of a rank's tokens).
    """

    def __init__(self, group, **options):
        self.group, self.options = group, options
        number = next(_contexts)
        self.name = "periplus" if number == 0 else f"periplus_{number}"
        self.rows, self._cu_seqlens, self._plans = None, None, {}
        self._waits = False  # for attention over what shard() returned last
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, _padding)

    def shard(self, tokens, cu_seqlens=None, labels=None):
        """This rank's arguments for the model. tokens and labels [tokens]: the whole packed sequence, on every rank and on the device of
        the model; cu_seqlens: borders of its documents, by default one. labels are those of the tokens themselves, as transformers has
        them; by default the tokens. What layers recompute in backward (gradient checkpointing) they do with the latest documents, so
        backward comes before the next shard. Errors: InvalidArgument also if the model has not asked for attention since the last call."""
        if self._waits:
            raise InvalidArgument("what shard() returned last has not come to attention: the model has none that others can compute, and its "
                                  "results are those of each rank's tokens alone; or shard() was called twice before the model")
        self._take(cu_seqlens if cu_seqlens is not None else [0, len(tokens)], tokens.device)
        if self._cu_seqlens[-1] != len(tokens):
            raise InvalidArgument(f"cu_seqlens end at {self._cu_seqlens[-1]}, but there are {len(tokens)} tokens")
        labels = tokens if labels is None else labels
        following = torch.full_like(labels, IGNORED)
        following[:-1] = labels[1:]
        borders = torch.tensor(self._cu_seqlens, device=tokens.device)
        following[borders[1:] - 1] = IGNORED  # no document predicts the next one
        everything = torch.arange(len(tokens), device=tokens.device)
        positions = everything - borders[torch.searchsorted(borders, everything, right=True) - 1]
        mine = torch.tensor(self.rows, dtype=torch.long, device=tokens.device)
        own = following[mine].unsqueeze(0)
        self._waits = True
        return {
            "input_ids": tokens[mine].unsqueeze(0),
            "position_ids": positions[mine].unsqueeze(0),
            "labels": own,
            "shift_labels": own,
            "num_items_in_batch": int((following != IGNORED).sum()),
            "use_cache": False,
        }

    def _take(self, cu_seqlens, device):
        borders = [int(border) for border in cu_seqlens]
        if borders == self._cu_seqlens:
            return
        # A ring takes every layout; which rows are whose does not depend on the strategy.
        layout = {name: value for name, value in self.options.items() if name == "layout"}
        rows = Attention(self.group, borders, 1, 8, device=device, strategy="ring", **layout).rows
        if not rows:
            raise InvalidArgument(f"rank {self.group.rank} has none of the {borders[-1]} tokens; models need one on every rank")
        self.rows, self._cu_seqlens, self._plans = rows, borders, {}

    def _plan(self, **what):
        key = tuple(what.items())
        if key not in self._plans:
            plan = Attention(self.group, self._cu_seqlens, **{name: value for name, value in what.items() if value is not None}, **self.options)
            if plan.rows != self.rows:
                raise InvalidArgument(f"layout {self.options['layout']} gives other rows to layers with other masks; choose another layout")
            self._plans[key] = plan
        return self._plans[key]

    def _check(self, module, query, attention_mask, dropout, more):
        """Refuses what would give other numbers than one rank has."""
        if self.rows is None:
            raise InvalidArgument("which tokens are whose is not known; give the model what context.shard() returns")
        if query.shape[0] != 1 or query.shape[2] != len(self.rows):
            raise InvalidArgument(f"the model got {query.shape[0]} rows of {query.shape[2]} tokens, but this rank has 1 row of "
                                  f"{len(self.rows)}; give it what context.shard() returns")
        positions = _refused_positions(type(module))
        if positions is not None:
            raise InvalidArgument(f"{positions}; use a model with rotary embeddings")
        if attention_mask is not None or dropout:
            raise InvalidArgument(f"{'dropout of attention' if dropout else 'a mask'} is not supported; pack documents with cu_seqlens, set "
                                  "attention_dropout to 0, and use transformers 4.53 or newer, whose models make no masks of their own")
        unknown = [name for name, value in more.items() if value is not None and value is not False and name not in _UNRELATED]
        if unknown:
            raise InvalidArgument(f"the model gives its attention {', '.join(unknown)}, which is not supported")
        config = getattr(module, "config", None)
        layers = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
        if not _LAYERS.issuperset(layers):
            raise InvalidArgument(f"layers of type {', '.join(sorted(set(layers) - _LAYERS))} are not supported")
        limit = _longest_of_one_rotation(config)
        if limit is not None and self.group.size > 1 and any(b - a > limit for a, b in zip(self._cu_seqlens, self._cu_seqlens[1:])):
            raise InvalidArgument(f"rotary embeddings that are dynamic or longrope would differ between ranks beyond {limit} tokens")

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, softcap=None,
                is_causal=None, s_aux=None, **more):
        self._check(module, query, attention_mask, dropout, more)
        self._waits = False
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        window = None if sliding_window is None else sliding_window - 1  # transformers counts the token itself
        plan = self._plan(heads=query.shape[1], head_size=query.shape[3], kv_heads=key.shape[1], value_size=value.shape[3],
                          dtype=query.dtype, device=query.device, causal=bool(causal), scale=scaling, softcap=softcap,
                          window=window if causal or window is None else (window, window), sink=s_aux is not None)
        packed = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        sink = None if s_aux is None else s_aux.to(torch.promote_types(query.dtype, torch.float32))
        return attention(plan, *packed, sink=sink).unsqueeze(0), None
