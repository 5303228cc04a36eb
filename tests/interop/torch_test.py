"""periplus.torch, Group.from_torch and periplus.transformers. Skipped, with a sentence, where PyTorch or transformers is not there."""

import copy
import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import types
import unittest

import periplus

if importlib.util.find_spec("torch") is None:
    print("torch_test: skipped: PyTorch is not installed (Debian: python3-torch)")
    sys.exit(0)

import torch

import periplus.torch

torch.set_num_threads(1)

CU_SEQLENS = [0, 3, 20, 61]


def naive_attention(q, k, v, cu_seqlens):
    """[tokens, heads, size], causal in each document."""
    outs = []
    for first, last in zip(cu_seqlens[:-1], cu_seqlens[1:]):
        scores = torch.einsum("qhd,khd->hqk", q[first:last], k[first:last]) * q.shape[2] ** -0.5
        future = torch.ones(last - first, last - first, dtype=torch.bool).triu(1)
        outs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(2), v[first:last]))
    return torch.cat(outs)


def whole(parts, rows):
    result = torch.empty(sum(map(len, rows)), *parts[0].shape[1:], dtype=parts[0].dtype)
    for part, mine in zip(parts, rows):
        result[mine] = part
    return result


def transformers_version():
    return tuple(map(int, importlib.metadata.version("transformers").split(".")[:2])) if importlib.util.find_spec("transformers") else (0, 0)


class TorchTest(unittest.TestCase):
    def test_gradients_through_attention(self):
        torch.manual_seed(0)
        q, k, v = (torch.randn(61, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
        out = naive_attention(q, k, v, CU_SEQLENS)
        expected = torch.autograd.grad(out.tanh().sum(), (q, k, v))

        def rank(group):
            plan = periplus.Attention(group, CU_SEQLENS, 4, 8, dtype=torch.float64, strategy="ulysses", layout="contiguous")
            mine = [tensor.detach()[plan.rows].requires_grad_() for tensor in (q, k, v)]
            result = periplus.torch.attention(plan, *mine)
            return plan.rows, result.detach(), *torch.autograd.grad(result.tanh().sum(), mine)

        rows, outs, *gradients = zip(*periplus.run_threads(2, rank))
        torch.testing.assert_close(whole(outs, rows), out.detach(), rtol=0, atol=1e-12)
        for parts, correct in zip(gradients, expected):
            torch.testing.assert_close(whole(parts, rows), correct, rtol=0, atol=1e-12)

    def test_lse_and_sink_are_differentiated(self):
        torch.manual_seed(1)
        plan = periplus.Attention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64", sink=True, lse_gradient=True)
        inputs = [torch.randn(9, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        inputs.append(torch.randn(2, dtype=torch.float64, requires_grad=True))
        torch.autograd.gradcheck(lambda *tensors: periplus.torch.attention(plan, *tensors), inputs)

    def test_strides_of_operands_and_gradients(self):
        torch.manual_seed(5)
        plan = periplus.Attention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64", lse_gradient=True)
        linear = periplus.LinearAttention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64")
        functions = [lambda *inputs: sum(part.sum() for part in periplus.torch.attention(plan, *inputs)),  # expands its gradient
                     lambda *inputs: periplus.torch.linear_attention(linear, *inputs).sum()]
        strided = [torch.randn(8, 2, 9, dtype=torch.float64).transpose(0, 2).requires_grad_() for _ in range(3)]
        dense = [tensor.detach().contiguous().requires_grad_() for tensor in strided]
        for function in functions:
            gradients = [torch.autograd.grad(function(*inputs), inputs) for inputs in (strided, dense)]
            torch.testing.assert_close(*gradients, rtol=0, atol=0)

    def test_second_derivatives_are_refused(self):
        plan = periplus.Attention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64")
        q = torch.randn(9, 2, 8, dtype=torch.float64, requires_grad=True)
        gradient, = torch.autograd.grad(periplus.torch.attention(plan, q, q, q).tanh().sum(), q, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "differentiate twice"):
            gradient.sum().backward()

    def test_an_expanded_sink(self):
        plan = periplus.Attention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64", sink=True)
        q, sink = torch.randn(9, 2, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda tensor: periplus.torch.attention(plan, q, q, q, tensor.expand(2)), [sink])

    def test_linear_attention_is_differentiated(self):
        torch.manual_seed(2)
        plan = periplus.LinearAttention(periplus.Group.alone(), [0, 4, 9], 2, 8, dtype="f64", decay="scalar", delta_rule=True)
        q, k, v = (torch.randn(9, 2, 8, dtype=torch.float64) for _ in range(3))
        inputs = [q, torch.nn.functional.normalize(k, dim=2), v, -torch.rand(9, 2, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)]
        torch.autograd.gradcheck(lambda *tensors: periplus.torch.linear_attention(plan, *tensors), [x.requires_grad_() for x in inputs])

    def test_short_convolution_is_differentiated(self):
        torch.manual_seed(2)
        plan = periplus.ShortConvolution(periplus.Group.alone(), [0, 4, 9], 3, dtype="f64")
        inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((9, 3), (3, 4), (3,))]
        for given in (inputs, inputs[:2]):
            torch.autograd.gradcheck(lambda *tensors: periplus.torch.short_convolution(plan, *tensors), given)

    def test_bf16(self):
        torch.manual_seed(3)
        plan = periplus.Attention(periplus.Group.alone(), CU_SEQLENS, 4, 64, dtype=torch.bfloat16)
        q, k, v = (torch.randn(61, 4, 64).bfloat16() for _ in range(3))
        correct = naive_attention(q.double(), k.double(), v.double(), CU_SEQLENS)
        torch.testing.assert_close(periplus.torch.attention(plan, q, k, v).double(), correct, rtol=2e-2, atol=2e-2)

    def test_process_groups(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started = [
            subprocess.Popen([sys.executable, os.path.join(os.path.dirname(__file__), "torch_rank.py")],
                             env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in range(3)
        ]
        for process in started:
            output, _ = process.communicate(timeout=100)
            self.assertEqual(process.returncode, 0, output)
            self.assertIn("equal", output)


@unittest.skipUnless(torch.cuda.is_available(), "there is no GPU")
class GpuTest(unittest.TestCase):
    def results(self, device, ranks):
        """out and gradients of the whole sequence."""
        torch.manual_seed(5)
        q, k, v, dout = (torch.randn(61, 4, 64).bfloat16().to(device) for _ in range(4))

        def rank(group):
            with torch.cuda.stream(torch.cuda.Stream()):
                plan = periplus.Attention(group, CU_SEQLENS, 4, 64, dtype="bf16", device=device)
                mine = [tensor[plan.rows].requires_grad_() for tensor in (q, k, v)]
                out = periplus.torch.attention(plan, *mine)
                gradients = torch.autograd.grad(out, mine, dout[plan.rows])
                torch.cuda.synchronize()
                return plan.rows, out.detach().cpu(), *(gradient.cpu() for gradient in gradients)

        rows, *parts = zip(*periplus.run_threads(ranks, rank))
        return [whole(part, rows).double() for part in parts]

    def test_attention_is_that_of_the_host(self):
        expected = self.results("cpu", 1)
        for ranks in (1, 2):
            for result, correct in zip(self.results("cuda", ranks), expected):
                torch.testing.assert_close(result, correct, rtol=3e-2, atol=3e-2)

    def test_linear_attention_is_that_of_the_host(self):
        torch.manual_seed(6)
        q, k, v = (torch.randn(61, 2, 64) for _ in range(3))
        outs = []
        for device in ("cpu", "cuda"):
            plan = periplus.LinearAttention(periplus.Group.alone(), CU_SEQLENS, 2, 64, dtype="f32", device=device)
            inputs = [tensor.to(device).requires_grad_() for tensor in (q, k, v)]
            out = periplus.torch.linear_attention(plan, *inputs)
            outs.append([tensor.detach().cpu() for tensor in (out, *torch.autograd.grad(out.square().sum(), inputs))])
        for on_host, on_gpu in zip(*outs):
            torch.testing.assert_close(on_gpu, on_host, rtol=1e-3, atol=1e-3)

    def test_short_convolution_is_that_of_the_host(self):
        torch.manual_seed(7)
        given = [torch.randn(*shape) for shape in ((61, 33), (33, 4), (33,))]
        results = []
        for device in ("cpu", "cuda"):
            plan = periplus.ShortConvolution(periplus.Group.alone(), CU_SEQLENS, 33, device=device)
            inputs = [tensor.to(device).requires_grad_() for tensor in given]
            y = periplus.torch.short_convolution(plan, *inputs)
            results.append([tensor.detach().cpu() for tensor in (y, *torch.autograd.grad(y.square().sum(), inputs))])
        for on_host, on_gpu in zip(*results):
            torch.testing.assert_close(on_gpu, on_host, rtol=1e-4, atol=1e-4)


@unittest.skipIf(importlib.util.find_spec("transformers") is None, "transformers is not installed")
class TransformersTest(unittest.TestCase):
    def check(self, config, ranks=3, rounding=1e-5, **options):
        """On ranks as on one, document by document; gradients to `rounding`, relative to the largest of a weight."""
        from transformers import AutoModelForCausalLM

        import periplus.transformers

        torch.manual_seed(4)
        plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
        tokens = torch.randint(0, config.vocab_size, (CU_SEQLENS[-1],))
        labels = tokens.masked_fill(torch.arange(len(tokens)) % 5 == 4, -100)
        expected, count = 0, 0
        for first, last in zip(CU_SEQLENS[:-1], CU_SEQLENS[1:]):
            own = labels[first:last].unsqueeze(0)
            many = int((own[:, 1:] != -100).sum())
            expected, count = expected + plain(tokens[first:last].unsqueeze(0), labels=own, use_cache=False).loss * many, count + many
        expected = expected / count
        expected.backward()

        def rank(group):
            context = periplus.transformers.Context(group, **options)
            own = copy.deepcopy(config)  # a model notes in it whose attention is its
            model = AutoModelForCausalLM.from_config(own, attn_implementation=context.name).double()
            model.load_state_dict(plain.state_dict())
            context.spread(model)
            model(**context.shard(tokens, [0, 41, 61]))  # other documents before
            loss = model(**context.shard(tokens, [0, *CU_SEQLENS, CU_SEQLENS[-1]], labels)).loss  # empty documents say nothing
            loss.backward()
            return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}

        losses, gradients = zip(*periplus.run_threads(ranks, rank))
        torch.testing.assert_close(sum(losses), expected.detach(), rtol=0, atol=2e-6)
        for name, weight in plain.named_parameters():
            total = sum(gradient[name] for gradient in gradients)
            torch.testing.assert_close(total, weight.grad, rtol=0, atol=1e-7 + rounding * weight.grad.abs().max().item(),
                                       msg=lambda text: f"{name}: {text}")

    def sizes(self, **more):
        return dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128, **more)

    def test_llama(self):
        from transformers import LlamaConfig

        self.check(LlamaConfig(**self.sizes()), layout="zigzag")

    def test_mistral_with_a_window(self):
        from transformers import MistralConfig

        self.check(MistralConfig(**self.sizes(sliding_window=9)), layout="contiguous", strategy="halo")

    def test_gemma2_with_caps_scale_and_windows(self):
        from transformers import Gemma2Config

        self.check(Gemma2Config(**self.sizes(head_dim=8, sliding_window=9, query_pre_attn_scalar=5, attn_logit_softcapping=0.01)))

    def test_attention_that_is_not_causal(self):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        import periplus.transformers

        context = periplus.transformers.Context(periplus.Group.alone())
        context.shard(torch.zeros(7, dtype=torch.long))
        q, k, v = (torch.randn(1, 2, 7, 8) for _ in range(3))
        for window in (None, 3):
            out, _ = ALL_ATTENTION_FUNCTIONS[context.name](torch.nn.Identity(), q, k, v, None, is_causal=False, sliding_window=window)
            distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
            scores = (q @ k.mT / 8**0.5).masked_fill(distance >= (window or 7), -torch.inf)
            torch.testing.assert_close(out, (scores.softmax(3) @ v).transpose(1, 2))

    def test_qwen3(self):
        from transformers import Qwen3Config

        self.check(Qwen3Config(**self.sizes(head_dim=16)), layout="striped")

    def linear_layers(self):
        """Name and configuration of models that have them, of those that this transformers has."""
        from transformers import AutoConfig

        kinds = ["linear_attention", "full_attention"]
        deltas = dict(layer_types=kinds, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=16)
        mamba = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=2, mamba_chunk_size=16)
        for name, own in (
            ("qwen3_next", dict(**deltas, head_dim=16, mlp_only_layers=[0, 1])),
            ("qwen3_5_text", dict(**deltas, head_dim=16)),
            ("olmo_hybrid", deltas),
            ("kimi_linear", dict(layer_types=kinds, mlp_layer_types=["dense", "dense"], linear_num_heads=2, linear_head_dim=16, kv_lora_rank=16,
                                 qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, num_key_value_heads=4)),
            ("mamba2", dict(num_heads=4, head_dim=16, state_size=16, n_groups=2, chunk_size=16)),
            ("bamba", dict(**mamba, attn_layer_indices=[1])),
            ("falcon_h1", dict(**mamba, mamba_d_ssm=64)),
            ("granitemoehybrid", dict(**mamba, layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=16)),
            ("nemotron_h", dict(layers_block_type=["mamba", "attention"], mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=16, n_groups=2,
                                expand=2, chunk_size=16, head_dim=8)),
            ("zamba2", dict(layers_block_type=["mamba", "hybrid"], mamba_ngroups=2, n_mamba_heads=4, mamba_d_state=16, mamba_headdim=16,
                            chunk_size=16, num_mem_blocks=1, adapter_rank=4)),
        ):
            try:
                yield name, AutoConfig.for_model(name, **{**self.sizes(pad_token_id=0, bos_token_id=1, eos_token_id=2), **own})
            except (KeyError, ValueError):
                continue

    def test_linear_layers(self):
        from transformers import AutoModelForCausalLM

        import periplus.transformers

        modern = transformers_version() >= (5, 16)
        for number, (name, config) in enumerate(self.linear_layers()):
            with self.subTest(name):
                if modern:  # whose own linear layers compute in f32
                    self.check(config, rounding=3e-4, **(dict(layout="contiguous", linear={"strategy": "all_scan"}) if number % 2 else {}))
                    continue
                context = periplus.transformers.Context(periplus.Group.alone())
                with self.assertRaisesRegex(periplus.InvalidArgument, "5.16"):
                    context.spread(AutoModelForCausalLM.from_config(config))
        if modern:
            with self.assertRaisesRegex(periplus.InvalidArgument, "layout contiguous gives other rows"):
                self.check(config, linear={"layout": "contiguous"})

    @unittest.skipIf(transformers_version() < (5, 16), "layers of this transformers do not call functions by name")
    def test_layers_are_changed_by_contexts_only(self):
        from transformers import AutoModelForCausalLM

        import periplus.transformers

        model = AutoModelForCausalLM.from_config(next(self.linear_layers())[1])
        for _ in range(2):
            context = periplus.transformers.Context(periplus.Group.alone())
            with self.assertRaisesRegex(periplus.InvalidArgument, f"attention of Qwen3NextForCausalLM.*{context.name}"):
                context.spread(model)
            model.set_attn_implementation(context.name)
            self.assertIs(context.spread(model), model)
        copied = copy.deepcopy(model)
        layer = copied.model.layers[0].linear_attn
        self.assertIs(layer.forward.__self__, layer)
        context.spread(copied)
        layer.forward = types.MethodType(type(layer).forward, layer)  # as torch.load leaves it
        context.spread(copied)
        self.assertIsNot(layer.forward.__func__, type(layer).forward)
        layer.forward = lambda *_, **__: None
        with self.assertRaisesRegex(periplus.InvalidArgument, "linear_attn.*a forward of its own already"):
            context.spread(copied)

    @unittest.skipIf(transformers_version() < (5, 16), "layers of this transformers do not call functions by name")
    def test_changed_layers_may_be_compiled(self):
        from transformers import AutoModelForCausalLM

        import periplus.transformers

        tokens = torch.arange(40) % 50
        for _ in range(2):  # several layers of a class, of several contexts
            context = periplus.transformers.Context(periplus.Group.alone())
            config = dict(self.linear_layers())["mamba2"]
            model = context.spread(AutoModelForCausalLM.from_config(config, attn_implementation=context.name))
            compiled = torch.compile(model, backend="eager")
            torch.testing.assert_close(compiled(**context.shard(tokens)).loss, model(**context.shard(tokens)).loss, rtol=1e-6, atol=0)

    def test_linear_layers_that_it_does_not_take(self):
        from transformers import AutoConfig, AutoModelForCausalLM

        import periplus.transformers

        context, refused = periplus.transformers.Context(periplus.Group.alone()), 0
        for name, own, why in (("mamba", {}, "MambaMixer.*not supported"), ("lfm2", dict(layer_types=["conv", "full_attention"]), "Conv.*not"),
                               ("minimax", dict(layer_types=["linear_attention", "full_attention"], head_dim=8), "0 of 1 layers"),
                               ("rwkv", dict(attention_hidden_size=32), "RwkvForCausalLM has neither")):
            try:
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **self.sizes(**own)))
            except (KeyError, ValueError):
                continue
            with self.assertRaisesRegex(periplus.InvalidArgument, why):
                context.spread(model)
            refused += 1
        self.assertGreater(refused, 0)
        with self.assertRaisesRegex(periplus.InvalidArgument, "Linear is no model of transformers"):
            context.spread(torch.nn.Linear(1, 1))

    def test_autocast(self):
        from transformers import AutoModelForCausalLM, LlamaConfig

        import periplus.transformers

        tokens = torch.arange(40) % 50
        context = periplus.transformers.Context(periplus.Group.alone())
        plain = AutoModelForCausalLM.from_config(LlamaConfig(**self.sizes()), attn_implementation="sdpa")
        model = AutoModelForCausalLM.from_config(LlamaConfig(**self.sizes()), attn_implementation=context.name)
        model.load_state_dict(plain.state_dict())
        with torch.autocast("cpu", torch.bfloat16):  # rotary embeddings leave queries and keys in f32, but not values
            expected = plain(tokens.unsqueeze(0), labels=tokens.unsqueeze(0)).loss
            loss = model(**context.shard(tokens)).loss
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
        loss.backward()

    def test_says_what_it_does_not_take(self):
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig

        import periplus.transformers

        context = periplus.transformers.Context(periplus.Group.alone())
        model = AutoModelForCausalLM.from_config(LlamaConfig(**self.sizes()), attn_implementation=context.name)
        tokens = torch.zeros(1, 7, dtype=torch.long)
        with self.assertRaisesRegex(periplus.InvalidArgument, "shard"):
            model(tokens)
        context.shard(tokens[0])
        with self.assertRaisesRegex(periplus.InvalidArgument, "1 row of 7"):
            model(tokens[:, :5])
        with self.assertRaisesRegex(periplus.InvalidArgument, "2 rows of 7"):
            model(tokens.expand(2, 7))
        dropping = LlamaConfig(**self.sizes(attention_dropout=0.1))
        with self.assertRaisesRegex(periplus.InvalidArgument, "dropout"):
            AutoModelForCausalLM.from_config(dropping, attn_implementation=context.name).train()(tokens)
        mask = torch.ones_like(tokens)
        model(tokens, attention_mask=mask)
        mask[0, 0] = 0
        with self.assertRaisesRegex(periplus.InvalidArgument, "a mask"):
            model(tokens, attention_mask=mask)
        with self.assertRaisesRegex(periplus.InvalidArgument, "position_bias"):
            model(tokens, position_bias=torch.zeros(7, 7))
        model.config.layer_types = ["full_attention", "linear_attention"]
        with self.assertRaisesRegex(periplus.InvalidArgument, r"linear_attention.*context.spread\(model\)"):
            model(tokens)
        with self.assertRaisesRegex(periplus.InvalidArgument, "choose another layout"):
            self.check(MistralConfig(**self.sizes(sliding_window=9)), layout="balanced")
        with self.assertRaisesRegex(periplus.InvalidArgument, "end at 6, but there are 7"):
            context.shard(tokens[0], [0, 6])
        context.shard(tokens[0])
        with self.assertRaisesRegex(periplus.InvalidArgument, "has not come to attention"):
            context.shard(tokens[0])
        refused = 0
        for name, why in (("roberta", "from their padding token on"), ("bart", "BartForCausalLM takes no position_ids")):
            own = AutoConfig.for_model(name, **self.sizes(is_decoder=True, hidden_dropout_prob=0, attention_probs_dropout_prob=0, dropout=0,
                                                          d_model=32, decoder_ffn_dim=48, decoder_layers=1, decoder_attention_heads=4))
            try:
                other = AutoModelForCausalLM.from_config(own, attn_implementation=context.name)
            except (KeyError, ValueError):  # an older transformers, in which this model takes no attention of others
                continue
            with self.assertRaisesRegex(periplus.InvalidArgument, why):
                other(input_ids=tokens, use_cache=False)
            attention = next(type(each) for each in other.modules() if hasattr(each, "k_proj") or hasattr(each, "key"))
            derived = type("Derived", (attention,), {"__module__": "of_no_file"})
            self.assertRegex(periplus.transformers._refused_positions(derived), why)
            refused += 1
        self.assertGreater(refused, 0)
        self.assertIsNone(periplus.transformers._refused_positions(torch.nn.Identity))
        fresh = periplus.transformers.Context(periplus.Group.alone())
        for _ in range(2):  # what was refused is not taken for known the second time
            with self.assertRaisesRegex(periplus.InvalidArgument, "has none of the 0 tokens"):
                fresh.shard(tokens[0, :0])
        with self.assertRaisesRegex(periplus.InvalidArgument, "rank 1 has none of the 1 tokens"):
            periplus.run_threads(2, lambda group: periplus.transformers.Context(group).shard(tokens[0, :1]))

    def test_rotations_that_depend_on_the_longest_position(self):
        from transformers import LlamaConfig

        scaling = {"rope_type": "dynamic", "factor": 2.0}
        with self.assertRaisesRegex(periplus.InvalidArgument, "beyond 40 tokens"):
            self.check(LlamaConfig(**{**self.sizes(), "max_position_embeddings": 40}, rope_scaling=scaling))
        self.check(LlamaConfig(**{**self.sizes(), "max_position_embeddings": 41}, rope_scaling=scaling))

    def test_sinks_of_a_bf16_model(self):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        import periplus.transformers

        context = periplus.transformers.Context(periplus.Group.alone())
        context.shard(torch.zeros(7, dtype=torch.long))
        q, k, v = (torch.randn(1, 2, 7, 8).bfloat16() for _ in range(3))
        sink = torch.randn(2).bfloat16().requires_grad_()
        out, _ = ALL_ATTENTION_FUNCTIONS[context.name](torch.nn.Identity(), q, k, v, None, s_aux=sink)
        out.float().sum().backward()
        self.assertEqual(sink.grad.dtype, torch.bfloat16)


if __name__ == "__main__":
    unittest.main()
