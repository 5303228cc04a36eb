"""Models of transformers on sequences that are spread over ranks.

    context = periplus.transformers.Context(periplus.Group.from_torch(), strategy="ring", layout="zigzag")
    model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation=context.name)
    loss = model(**context.shard(tokens, cu_seqlens)).loss      # tokens [tokens], the whole packed sequence, on every rank
    loss.backward()

Models with linear layers, too, see all ranks after `context.spread(model)`: gated delta networks, Kimi's and Mamba-2, alone or between
layers of attention.

Ranks share one model as they do in data-parallel training, but the loss of a rank is its part of the mean over all labels of the sequence:
losses and gradients are to be summed over ranks. What averages gradients (DistributedDataParallel, FSDP) gets `loss * group.size`.
"""

import functools
import inspect
import itertools
import sys
import types
import weakref

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from . import _linear_layers
from ._library import InvalidArgument
from .attention import Attention
from .linear import LinearAttention
from .torch import attention

IGNORED = -100  # transformers' label of tokens that have none

# What models pass on that says nothing about which scores there are; everything else that _attend does not know is refused.
_UNRELATED = {"cache_position", "labels", "logits_to_keep", "num_items_in_batch", "output_attentions", "output_hidden_states",
              "output_router_logits", "position_embeddings", "position_ids", "return_dict", "shift_labels", "use_cache"}
_LAYERS = {"full_attention", "sliding_attention", "attention", "moe", "mlp"}
_LINEAR_LAYERS = {"linear_attention", "mamba", "hybrid"}  # hybrid: attention and a linear layer side by side

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


def _layer_types(config):
    return getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()


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


def _called(module):
    """Names that the forward of the module's class uses."""
    forward = inspect.unwrap(type(module).forward)
    return set(getattr(getattr(forward, "__code__", None), "co_names", ()))


def _with_functions(kind, functions):
    """The forward of a class, which finds other functions under some names of its file. Modules that are not given it keep theirs."""
    forward = inspect.unwrap(kind.forward)
    code = forward.__code__.replace()  # of its own: what torch.compile keeps with it works with these globals only
    changed = types.FunctionType(code, {**forward.__globals__, **functions}, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    changed.of_periplus = True  # on the function, which copies of the module share
    return changed


def _is_own(module):
    """Whether the module's forward is that of its class (of which torch.load makes one of its own) or changed here."""
    forward = vars(module).get("forward")
    return forward is None or getattr(forward, "of_periplus", False) or getattr(forward, "__func__", None) is type(module).forward


class Context:
    """Who works together and how, and which documents they work on now. `options` are those of Attention: strategy, layout, ...; `linear`
    are more of those of LinearAttention, for linear layers: {"strategy": "all_scan"}.

    Registers an attention function under `name`, for attn_implementation. It takes packed rows (a batch of 1) without padding masks,
    dropout or caches, and hears from the model about grouped heads, scale, sliding windows, caps of scores and sinks. Only it and what
    spread() changes see other ranks: tokens must not meet anywhere else in the model (attention of the model's own, or losses of
    a router, which then are those of a rank's tokens).
    """

    def __init__(self, group, *, linear=None, **options):
        self.group, self.options, self.linear = group, options, linear or {}
        self._layout = {name: value for name, value in options.items() if name == "layout"}
        self._spread = weakref.WeakSet()  # modules of models whose linear layers see all ranks
        number = next(_contexts)
        self.name = "periplus" if number == 0 else f"periplus_{number}"
        self.rows, self._cu_seqlens, self._plans = None, None, {}
        self._waits = False  # for a layer that asks for what shard() returned last
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, _padding)

    def spread(self, model):
        """The model itself, whose linear layers now ask other ranks, and so work only on what shard() returns. Errors: InvalidArgument for
        one with layers in which tokens meet in other ways, or attention that is not this context's, before any is changed, and for what is
        no model of transformers."""
        if not hasattr(getattr(model, "config", None), "get_text_config"):
            raise InvalidArgument(f"{type(model).__name__} is no model of transformers; spread one before it is wrapped")
        layers = []
        for name, module in model.named_modules():
            if not _called(module).isdisjoint(_linear_layers.RECURRENCES):
                if not _is_own(module):
                    raise InvalidArgument(f"{name} ({type(module).__name__}) has a forward of its own already; spread the model before others "
                                          "change its layers")
                layers.append(module)
            elif any(isinstance(child, torch.nn.Conv1d) for child in module.children()):
                raise InvalidArgument(f"{name} ({type(module).__name__}) has a convolution but calls none of "
                                      f"{', '.join(_linear_layers.RECURRENCES)}, as gated delta networks, Kimi's and Mamba-2 of transformers "
                                      "5.16 do; it is not supported")
        config, attends = model.config.get_text_config(), any("ALL_ATTENTION_FUNCTIONS" in _called(module) for module in model.modules())
        if not layers and not attends:
            raise InvalidArgument(f"{type(model).__name__} has neither attention nor linear layers that others can compute; it is not supported")
        linear = [kind for kind in _layer_types(config) if kind not in _LAYERS]
        if len(layers) < len(linear) or not _LINEAR_LAYERS.issuperset(linear):
            raise InvalidArgument(f"{len(layers)} of {len(linear)} layers of type {', '.join(sorted(set(linear)))} are gated delta networks, "
                                  "Kimi's or Mamba-2; others are not supported")
        if attends and config._attn_implementation != self.name:
            raise InvalidArgument(f"attention of {type(model).__name__} is {config._attn_implementation}, which does not see other ranks of this "
                                  f"context; give the model attn_implementation {self.name}, then spread it")
        functions = {name: functools.partial(function, self) for name, function in _linear_layers.FUNCTIONS.items()}
        changed = {kind: _with_functions(kind, functions) for kind in set(map(type, layers))}
        for module in layers:
            module.forward = types.MethodType(changed[type(module)], module)
        self._spread.update(model.modules())
        return model

    def shard(self, tokens, cu_seqlens=None, labels=None):
        """This rank's arguments for the model. tokens and labels [tokens]: the whole packed sequence, on every rank and on the device of
        the model; cu_seqlens: borders of its documents, by default one. labels are those of the tokens themselves, as transformers has
        them; by default the tokens. What layers recompute in backward (gradient checkpointing) they do with the latest documents, so
        backward comes before the next shard. Errors: InvalidArgument also if the model has not asked for attention since the last call."""
        if self._waits:
            raise InvalidArgument("what shard() returned last has not come to attention: the model has none that others can compute, and its "
                                  "results are those of each rank's tokens alone (linear layers: see spread()); or shard() was called twice "
                                  "before the model")
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
        rows = Attention(self.group, borders, 1, 8, device=device, strategy="ring", **self._layout).rows
        if not rows:
            raise InvalidArgument(f"rank {self.group.rank} has none of the {borders[-1]} tokens; models need one on every rank")
        self.rows, self._cu_seqlens, self._plans = rows, borders, {}

    def plan(self, operator, **what):
        """Attention, LinearAttention or ShortConvolution of the documents of shard(), as the options say."""
        key = (operator, *what.items())
        if key not in self._plans:
            options = self.options
            if operator is not Attention:
                options = {**self._layout, **(self.linear if operator is LinearAttention else {})}
            plan = operator(self.group, self._cu_seqlens, **{name: value for name, value in what.items() if value is not None}, **options)
            if plan.rows != self.rows:
                raise InvalidArgument(f"layout {options.get('layout', 'zigzag')} gives other rows to other layers; choose another layout")
            self._plans[key] = plan
        return self._plans[key]

    def check(self, batch, tokens, more):
        """Refuses other tokens than shard() gave and what a function is told beyond what it knows; of either sort of layer."""
        if self.rows is None:
            raise InvalidArgument("which tokens are whose is not known; give the model what context.shard() returns")
        if batch != 1 or tokens != len(self.rows):
            raise InvalidArgument(f"the model got {batch} rows of {tokens} tokens, but this rank has 1 row of "
                                  f"{len(self.rows)}; give it what context.shard() returns")
        unknown = [name for name, value in more.items() if value is not None and value is not False and name not in _UNRELATED]
        if unknown:
            raise InvalidArgument(f"the model gives a layer {', '.join(unknown)}, which is not supported")
        self._waits = False

    def _check_attention(self, module, attention_mask, dropout):
        """Refuses what would give other numbers than one rank has."""
        positions = _refused_positions(type(module))
        if positions is not None:
            raise InvalidArgument(f"{positions}; use a model with rotary embeddings")
        if attention_mask is not None or dropout:
            raise InvalidArgument(f"{'dropout of attention' if dropout else 'a mask'} is not supported; pack documents with cu_seqlens, set "
                                  "attention_dropout to 0, and use transformers 4.53 or newer, whose models make no masks of their own")
        config = getattr(module, "config", None)
        others = set(_layer_types(config)) - _LAYERS
        if others and module not in self._spread:
            raise InvalidArgument(f"the model has layers of type {', '.join(sorted(others))}, which see other ranks only after "
                                  "context.spread(model)")
        limit = _longest_of_one_rotation(config)
        if limit is not None and self.group.size > 1 and any(b - a > limit for a, b in zip(self._cu_seqlens, self._cu_seqlens[1:])):
            raise InvalidArgument(f"rotary embeddings that are dynamic or longrope would differ between ranks beyond {limit} tokens")

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, softcap=None,
                is_causal=None, s_aux=None, **more):
        self.check(query.shape[0], query.shape[2], more)
        self._check_attention(module, attention_mask, dropout)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in f32 after rotary embeddings
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        window = None if sliding_window is None else sliding_window - 1  # transformers counts the token itself
        plan = self.plan(Attention, heads=query.shape[1], head_size=query.shape[3], kv_heads=key.shape[1], value_size=value.shape[3],
                         dtype=query.dtype, device=query.device, causal=bool(causal), scale=scaling, softcap=softcap,
                          window=window if causal or window is None else (window, window), sink=s_aux is not None)
        packed = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        sink = None if s_aux is None else s_aux.to(torch.promote_types(query.dtype, torch.float32))
        return attention(plan, *packed, sink=sink).unsqueeze(0), None
