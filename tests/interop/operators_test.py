"""The Python package against NumPy: threads as ranks, every gradient, lengths that divide by nothing, and what it refuses."""

import importlib.util
import sys
import unittest

if importlib.util.find_spec("numpy") is None:
    print("operators_test: skipped: NumPy is not installed (Debian: python3-numpy)")
    sys.exit(0)

import numpy
import reference

import periplus
from periplus._library import Handle, check, library
from periplus._tensors import pointers

CU_SEQLENS = [0, 5, 5, 38, 101]


def random(*shape, seed=0):
    return numpy.random.default_rng(seed).standard_normal(shape)


def assemble(parts, rows, shape):
    whole = numpy.full(shape, numpy.nan)
    for part, mine in zip(parts, rows):
        whole[mine] = part
    return whole


class AttentionTest(unittest.TestCase):
    def check(self, ranks, *, dtype="f64", tolerance=1e-12, heads=(4, 2), sizes=(8, 12), sink=False, window=None, causal=True, **options):
        tokens, (q_heads, kv_heads), (size, value_size) = CU_SEQLENS[-1], heads, sizes
        q, k, v = random(tokens, q_heads, size), random(tokens, kv_heads, size, seed=1), random(tokens, kv_heads, value_size, seed=2)
        dout, logits = random(tokens, q_heads, value_size, seed=3), random(q_heads, seed=4) if sink else None
        names = {"f64": "float64", "f32": "float32", "f16": "float16"}
        if window is not None:
            options["window"] = window

        def rank(group):
            plan = periplus.Attention(group, CU_SEQLENS, q_heads, size, kv_heads=kv_heads, value_size=value_size, dtype=dtype, causal=causal,
                                      sink=sink, **options)
            mine = [array[plan.rows].astype(names[dtype]) for array in (q, k, v, dout)]
            accumulators = None if logits is None else logits.astype("float64" if dtype == "f64" else "float32")
            out, lse = plan.forward(*mine[:3], accumulators)
            return plan.rows, out, lse, *plan.backward(*mine[:3], out, lse, mine[3], sink=accumulators)

        results = list(zip(*periplus.run_threads(ranks, rank)))
        expected = reference.attention(q, k, v, dout, reference.visible(CU_SEQLENS, causal, window), size**-0.5, logits)
        self.assertEqual(sorted(row for rows in results[0] for row in rows), list(range(tokens)))
        for name, parts, correct in zip("out lse dq dk dv dsink".split(), results[1:], expected):
            whole = sum(parts) if name == "dsink" else assemble(parts, results[0], correct.shape)
            error = numpy.abs(whole - correct).max() / max(1, numpy.abs(correct).max())
            self.assertLessEqual(error, tolerance, f"{name} of {ranks} ranks with {options}")

    def test_ranks(self):
        for ranks in (1, 2, 3):
            self.check(ranks)

    def test_strategies_and_layouts(self):
        for strategy in ("ring", "gather_kv", "ulysses", "usp"):
            self.check(2, strategy=strategy)
        self.check(2, strategy="auto", machine="h100x8")
        for layout in ("contiguous", "striped", "document_zigzag", "balanced"):
            self.check(3, layout=layout)

    def test_masks_and_sinks(self):
        self.check(2, window=7)
        self.check(2, causal=False)
        self.check(2, causal=False, window=(7, 3))
        self.check(3, sink=True)

    def test_types(self):
        self.check(2, dtype="f32", tolerance=2e-5)
        self.check(2, dtype="f16", tolerance=2e-2)

    def test_strided_operands(self):
        q = random(6, 3, 2, 8)[:, :, 0, :]

        def rank(group):
            plan = periplus.Attention(group, [0, 6], 3, 8, dtype="f64", scale=0.5)
            out, _ = plan.forward(q, q, q)
            dense, _ = plan.forward(*[numpy.ascontiguousarray(q)] * 3)
            return numpy.array_equal(out, dense)

        self.assertEqual(periplus.run_threads(1, rank), [True])

    def test_refusals(self):
        group = periplus.Group.alone()
        for words, options in [("layout.*zigzag", {"layout": "zigzig"}), ("--no-such", {"no_such": 1}), ("config", {"config": "x.toml"}),
                               ("window", {"window": (1, 2, 3)})]:
            with self.assertRaisesRegex(periplus.InvalidArgument, words):
                periplus.Attention(group, [0, 4], 1, 8, **options)
        with self.assertRaisesRegex(periplus.InvalidArgument, "int32"):
            periplus.Attention(group, [0, 4], 1, 8, dtype="int32")
        plan = periplus.Attention(group, [0, 4], 1, 8, dtype="f32")
        right = numpy.zeros((4, 1, 8), "float32")
        for words, k in [("k", numpy.zeros((3, 1, 8), "float32")), ("k", numpy.zeros((4, 1, 8))), ("k is a list", [1.0]), ("k", None),
                         ("k.*other order", right.astype(">f4"))]:
            with self.assertRaisesRegex(periplus.InvalidArgument, words):
                plan.forward(right, k, right)

        pairs = numpy.zeros((4, 1, 8), [("one", "float32"), ("other", "float64")])
        with self.assertRaisesRegex(periplus.InvalidArgument, "q.*multiples"):
            periplus.Attention(group, [0, 4], 1, 8, dtype="f64").forward(pairs["other"], right, right)
        with self.assertRaisesRegex(periplus.InvalidArgument, "decay 'some'"):
            periplus.LinearAttention(group, [0, 4], 1, 8, decay="some")

    def test_a_rank_that_does_not_come(self):
        def rank(group):
            if group.rank == 0:
                periplus.Attention(group, [0, 64], 1, 8)

        with self.assertRaisesRegex(periplus.Failure, "not finished after 0.2 s"):
            periplus.run_threads(2, rank, deadline_seconds=0.2)

    def test_handles_are_freed_once(self):
        freed = []
        handle = Handle(1, freed.append)
        del handle
        self.assertEqual(freed, [1])

    def test_a_rank_that_fails_ends_the_others(self):
        def rank(group):
            if group.rank == 1:
                raise KeyError("lost")
            periplus.Attention(group, [0, 64], 1, 8)

        with self.assertRaisesRegex(KeyError, "lost"):
            periplus.run_threads(3, rank)


class LinearAttentionTest(unittest.TestCase):
    def check(self, ranks, decay="none", delta_rule=False, **options):
        tokens, heads, size, value_size = CU_SEQLENS[-1], 2, 8, 6
        q, k, v = random(tokens, heads, size), random(tokens, heads, size, seed=1), random(tokens, heads, value_size, seed=2)
        k /= numpy.linalg.norm(k, axis=2, keepdims=True)
        dout = random(tokens, heads, value_size, seed=3)
        shape = {"none": None, "scalar": (tokens, heads), "diagonal": (tokens, heads, size)}[decay]
        log_decay = None if shape is None else -0.1 * random(*shape, seed=4) ** 2
        beta = 1 / (1 + numpy.exp(-random(tokens, heads, seed=5))) if delta_rule else None
        inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}

        def rank(group):
            plan = periplus.LinearAttention(group, CU_SEQLENS, heads, size, value_size=value_size, dtype="f64", decay=decay,
                                            delta_rule=delta_rule, **options)
            mine = {name: None if array is None else array[plan.rows] for name, array in inputs.items()}
            out, states = plan.forward(**mine)
            return plan.rows, out, plan.backward(states, **mine, out=out, dout=dout[plan.rows])

        rows, outs, gradients = zip(*periplus.run_threads(ranks, rank))

        def loss(**changed):
            return (dout * reference.linear_attention(**{**inputs, **changed}, cu_seqlens=CU_SEQLENS, scale=size**-0.5)).sum()

        out = reference.linear_attention(**inputs, cu_seqlens=CU_SEQLENS, scale=size**-0.5)
        self.assertLess(numpy.abs(assemble(outs, rows, out.shape) - out).max(), 1e-12)
        for (name, array), parts in zip(inputs.items(), zip(*gradients)):
            if array is None:
                self.assertEqual(set(parts), {None})
                continue
            direction = random(*array.shape, seed=6)
            slope = (loss(**{name: array + 1e-6 * direction}) - loss(**{name: array - 1e-6 * direction})) / 2e-6
            self.assertAlmostEqual((assemble(parts, rows, array.shape) * direction).sum(), slope, delta=1e-6 * max(1, abs(slope)), msg=name)

    def test_decays(self):
        for decay in ("none", "scalar", "diagonal"):
            self.check(3, decay)

    def test_variants(self):
        q, k, v = abs(random(9, 2, 8)), abs(random(9, 2, 8, seed=1)), random(9, 2, 8, seed=2)
        scores = numpy.einsum("qhd,khd->hqk", q, k)

        def run(**options):
            return periplus.LinearAttention(periplus.Group.alone(), [0, 9], 2, 8, dtype="f64", scale=1, **options).forward(q, k, v)[0]

        numpy.testing.assert_allclose(run(bidirectional=True), numpy.einsum("hqk,khe->qhe", scores, v))
        past = numpy.tril(scores)
        numpy.testing.assert_allclose(run(normalise=True), numpy.einsum("hqk,khe->qhe", past / past.sum(2, keepdims=True), v), rtol=1e-5)

    def test_heads_that_share_queries_and_keys(self):
        q, k, v, dout = random(9, 1, 8), random(9, 1, 8, seed=1), random(9, 6, 8, seed=2)[:, ::2], random(9, 3, 8, seed=3)
        plan = periplus.LinearAttention(periplus.Group.alone(), [0, 4, 9], 3, 8, dtype="f64")

        def run(q, k, v):
            out, states = plan.forward(q, k, v)
            return [out, *plan.backward(states, q, k, v, out, dout)[:3]]

        views = run(numpy.broadcast_to(q, (9, 3, 8)), numpy.broadcast_to(k, (9, 3, 8)), v)
        for of_view, of_copy in zip(views, run(numpy.repeat(q, 3, 1), numpy.repeat(k, 3, 1), v.copy())):
            numpy.testing.assert_array_equal(of_view, of_copy)

    def test_delta_rule(self):
        self.check(2, delta_rule=True)
        self.check(3, "scalar", delta_rule=True, keep_transitions=True)

    def test_delta_rule_with_a_decay_per_channel(self):
        self.check(3, "diagonal", delta_rule=True)

    def test_strategies(self):
        self.check(2, "scalar", strategy="lasp", layout="contiguous")
        self.check(3, "scalar", strategy="all_scan", layout="contiguous")


class ShortConvolutionTest(unittest.TestCase):
    def check(self, ranks, bias, width=4, **options):
        tokens, channels = CU_SEQLENS[-1], 6
        inputs = {"x": random(tokens, channels), "weight": random(channels, width + bias, seed=1)}
        dy = random(tokens, channels, seed=2)

        def rank(group):
            plan = periplus.ShortConvolution(group, CU_SEQLENS, channels, width, dtype="f64", **options)
            x = inputs["x"][plan.rows]
            y, halo = plan.forward(x, inputs["weight"])
            return plan.rows, y, *plan.backward(x, inputs["weight"], halo, dy[plan.rows])

        rows, ys, dxs, dweights = zip(*periplus.run_threads(ranks, rank))
        y = reference.short_convolution(**inputs, cu_seqlens=CU_SEQLENS, width=width)
        self.assertLess(numpy.abs(assemble(ys, rows, y.shape) - y).max(), 1e-12)
        for name, gradient in (("x", assemble(dxs, rows, y.shape)), ("weight", sum(dweights))):
            direction = random(*gradient.shape, seed=3)
            plus, minus = (
                (dy * reference.short_convolution(**{**inputs, name: inputs[name] + step * direction}, cu_seqlens=CU_SEQLENS, width=width)).sum()
                for step in (1e-6, -1e-6)
            )
            slope = (plus - minus) / 2e-6
            self.assertAlmostEqual((gradient * direction).sum(), slope, delta=1e-6 * max(1, abs(slope)), msg=name)

    def test_ranks_layouts_and_biases(self):
        for bias in (False, True):
            self.check(1, bias)
            self.check(3, bias, layout="zigzag")
            self.check(3, bias, layout="striped")
            self.check(2, bias, width=1)

    def test_refusals(self):
        group = periplus.Group.alone()
        for words, options in [("width 0 and 2 channels", {"width": 0}), ("dtype f16", {"dtype": "f16"}), ("layout.*x", {"layout": "x"})]:
            with self.assertRaisesRegex(periplus.InvalidArgument, words):
                periplus.ShortConvolution(group, [0, 4], 2, **options)
        plan = periplus.ShortConvolution(group, [0, 4], 2)
        x, weight = numpy.zeros((4, 2), "float32"), numpy.zeros((2, 4), "float32")
        for words, arguments in [("x.*5, 2", (numpy.zeros((5, 2), "float32"), weight)), ("weight.*2, 6", (x, numpy.zeros((2, 6), "float32"))),
                                 ("x.*f64", (x.astype("float64"), weight)), (r"x has shape \[4\]", (x[:, 0], weight)), ("NULL", (x, None))]:
            with self.assertRaisesRegex(periplus.InvalidArgument, words):
                plan.forward(*arguments)
        y, halo = plan.forward(x, weight)
        with self.assertRaisesRegex(periplus.InvalidArgument, "dweight"):
            arguments = pointers(x=x, weight=weight, halo=halo, dy=y, dx=x, dweight=x)
            check(library.periplus_convolution_backward(plan._handle.pointer, *arguments))

        def rank(group):
            periplus.ShortConvolution(group, [0, 4], 2 + group.rank)

        with self.assertRaisesRegex(periplus.InvalidArgument, "short convolution: the problem"):
            periplus.run_threads(2, rank)


if __name__ == "__main__":
    unittest.main()
