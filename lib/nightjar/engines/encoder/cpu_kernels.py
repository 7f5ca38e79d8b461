"""The steps between matrix products of a BERT-like encoder, each one pass over memory, compiled by numba.

torch runs residual, LayerNorm, de-quantising and quantising as separate passes (5.1 us a token of MiniLM for
its 12 LayerNorms alone, against 1.1 us here). Rows are tokens; all arrays are C-contiguous. Transcendentals
are polynomials, so that LLVM vectorises them: exp of Cephes (relative error 1.4e-7) and erf of Eigen (8.9e-7
of GELU on [-12, 12]).
"""

# numba hands a signature function its arguments by name and `generate` their values, so most names go unused.
# ruff: noqa: ARG001

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# No nnan and ninf: a NaN in the weights must reach the output, where the stage looks for it.
_FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
_OPTIONS = {"fastmath": _FAST, "nogil": True, "error_model": "numpy", "boundscheck": False}

f32 = np.float32
_ZERO, _HALF, _ONE = f32(0), f32(0.5), f32(1)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, keeping the machine code on disk where a folder for it can be written."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found no folder to cache in: compile in every process
        return njit(**_OPTIONS)(function)


_inlined = njit(inline="always", **_OPTIONS)


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(_context: Any, _bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_int(_context: Any, _value: Any) -> Any:
    """The int32 whose bits are those of a float32."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


# A largest float is looked for among integers: without the promise that there is no NaN, LLVM takes the
# values one by one (4 cycles each). As integers, absolute values keep their order, and a NaN is the largest.
_MAGNITUDE = np.int32(0x7FFFFFFF)
# 1.5 * 2^23: a float of at most 2^22 added to it has its nearest integer (half to even) in its lowest bits.
_ROUNDER, _ROUNDER_BITS = f32(12582912), np.int32(0x4B400000)


_LOG2_E, _LN2_HIGH, _LN2_LOW, _EXP_LOW = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4), f32(-87)
_E0, _E1, _E2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
_E3, _E4, _E5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)


_ROOT_HALF, _ERF_LIMIT = f32(0.70710678), f32(4)
_A1, _A3, _A5, _A7 = (f32(c) for c in (-1.60960333e-2, -2.95459981e-3, -7.34990630e-4, -5.69250639e-5))
_A9, _A11, _A13 = f32(-2.10102402e-6), f32(2.77068142e-8), f32(-2.72614226e-10)
_B0, _B2, _B4 = f32(-1.42647391e-2), f32(-7.37332917e-3), f32(-1.68282697e-3)
_B6, _B8 = f32(-2.13374055e-4), f32(-1.45660719e-5)


@_inlined  # type: ignore[untyped-decorator]
def _gelu(x: Any) -> Any:
    """x times the normal distribution function, erf as a rational function (Eigen's generic_fast_erf)."""
    z = min(max(x * _ROOT_HALF, -_ERF_LIMIT), _ERF_LIMIT)
    w = z * z
    a = ((((((_A13 * w + _A11) * w + _A9) * w + _A7) * w + _A5) * w + _A3) * w + _A1) * z
    b = (((_B8 * w + _B6) * w + _B4) * w + _B2) * w + _B0
    return _HALF * x * (_ONE + a / b)


@_inlined  # type: ignore[untyped-decorator]
def _quantize_row(x: Any, q: Any) -> Any:
    """Write round(x / s) as int8 and return s, the largest |x| / 127; a zero row gets zeros and s = 0."""
    bits = np.int32(0)
    for c in range(x.shape[0]):
        bits = max(bits, _as_int(x[c]) & _MAGNITUDE)
    largest = _as_float(bits)
    inverse = f32(127) / largest if largest > _ZERO else _ZERO
    for c in range(x.shape[0]):
        q[c] = np.int8(_as_int(x[c] * inverse + _ROUNDER) - _ROUNDER_BITS)
    return largest / f32(127)


@_inlined  # type: ignore[untyped-decorator]
def _norm_row(x: Any, gain: Any, shift: Any, eps: Any) -> None:
    """LayerNorm of one row in place; variance from the centred values (two passes, as torch)."""
    n = f32(x.shape[0])
    total = _ZERO
    for c in range(x.shape[0]):
        total += x[c]
    mean = total / n
    squares = _ZERO
    for c in range(x.shape[0]):
        centred = x[c] - mean
        squares += centred * centred
    inverse = _ONE / np.sqrt(squares / n + eps)
    for c in range(x.shape[0]):
        x[c] = (x[c] - mean) * inverse * gain[c] + shift[c]


@compiled
def add_norm(y: Any, residual: Any, gain: Any, shift: Any, eps: Any) -> None:
    """LayerNorm(y + residual) into ``residual``: y, residual (T, C) float32."""
    for t in range(y.shape[0]):
        for c in range(y.shape[1]):
            residual[t, c] += y[t, c]
        _norm_row(residual[t], gain, shift, eps)


@compiled
def normed_products(
    tables: Any, ids: Any, positions: Any, mean: Any, rstd: Any, whole: Any, bias: Any, out: Any
) -> None:
    """out[t] = (words[ids[t]] + places[positions[t]] - mean[t] · whole) · rstd[t] + bias, (T, C) float32.

    ``tables`` is (words, places): what a matrix makes of each before they are added and normed.
    """
    words, places = tables
    for t in range(ids.shape[0]):
        word, place = words[ids[t]], places[positions[t]]
        for c in range(out.shape[1]):
            out[t, c] = (word[c] + place[c] - mean[t] * whole[c]) * rstd[t] + bias[c]


@compiled
def quantize(x: Any, q: Any, scale: Any) -> None:
    """Per-row symmetric int8 of x (T, C): q (T, C) int8 and scale (T,) with x ~ q * scale."""
    for t in range(x.shape[0]):
        scale[t] = _quantize_row(x[t], q[t])


@compiled
def dequantize(acc: Any, row_scale: Any, col_scale: Any, bias: Any, out: Any) -> None:
    """acc (T, C) int32 times both scales plus bias, into out (T, C) float32."""
    for t in range(acc.shape[0]):
        s = row_scale[t]
        for c in range(acc.shape[1]):
            out[t, c] = f32(acc[t, c]) * s * col_scale[c] + bias[c]


@compiled
def dequantize_add_norm_quantize(
    acc: Any, scales: Any, bias: Any, x: Any, norm: Any, q: Any, q_scale: Any
) -> None:
    """From an int32 product to the next int8 input: x = LayerNorm(product + bias + x), q ~ x / q_scale.

    ``scales`` is (row_scale (T,), col_scale (C,)) and ``norm`` (gain (C,), shift (C,), eps).
    """
    row_scale, col_scale = scales
    gain, shift, eps = norm
    for t in range(acc.shape[0]):
        s = row_scale[t]
        for c in range(acc.shape[1]):
            x[t, c] += f32(acc[t, c]) * s * col_scale[c] + bias[c]
        _norm_row(x[t], gain, shift, eps)
        q_scale[t] = _quantize_row(x[t], q[t])


@compiled
def dequantize_gelu_quantize(acc: Any, scales: Any, bias: Any, q: Any, q_scale: Any) -> None:
    """One pass from an int32 product to the next int8 input: q ~ GELU(product + bias) / q_scale."""
    row_scale, col_scale = scales
    row = np.empty(acc.shape[1], np.float32)
    for t in range(acc.shape[0]):
        s = row_scale[t]
        for c in range(acc.shape[1]):
            row[c] = _gelu(f32(acc[t, c]) * s * col_scale[c] + bias[c])
        q_scale[t] = _quantize_row(row, q[t])


_LANES, _SIX = 16, 6
_FLOATS, _LONG = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)


def _rows_times(n_rows: int, n_vectors: int) -> Any:
    """Rows times a matrix of n_vectors · 16 columns; its sums stay in registers until they are whole."""

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        _context: Any, a: Any, a_from: Any, b: Any, b_from: Any, n_steps: Any, out: Any, to: Any, out_row: Any
    ) -> Any:
        """out[to + r·out_row + i] = sum over k < n_steps of a[at + r·row + k·step] · b[b_at + k·b_row + i].

        a_from is (at, row, step), b_from (b_at, b_row); all arrays are flat float32.
        """
        signature = types.void(a, a_from, b, b_from, types.intp, out, types.intp, types.intp)

        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            a_value, a_places, b_value, b_places, steps, out_value, out_at, out_width = arguments
            at, row, step_of_a = (builder.extract_value(a_places, n) for n in range(3))
            b_at, b_width = (builder.extract_value(b_places, n) for n in range(2))

            def start(kind: Any, value: Any, offset: Any) -> Any:
                return builder.gep(target.make_array(kind)(target, builder, value).data, [offset])

            def vector(base: Any, offset: Any) -> Any:
                return builder.bitcast(builder.gep(base, [offset]), _FLOATS.as_pointer())

            columns, results = start(b, b_value, b_at), start(out, out_value, out_at)
            rows = [start(a, a_value, builder.add(at, builder.mul(row, _LONG(r)))) for r in range(n_rows)]
            before, loop = builder.block, builder.append_basic_block("steps")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(_LONG)
            sums = [[builder.phi(_FLOATS) for _ in range(n_vectors)] for _ in range(n_rows)]
            first, place = builder.mul(step, b_width), builder.mul(step, step_of_a)
            parts = [
                builder.load(vector(columns, builder.add(first, _LONG(n * _LANES))), align=4)
                for n in range(n_vectors)
            ]
            added = []
            for r in range(n_rows):
                value = builder.load(builder.gep(rows[r], [place]))
                one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.IntType(32)(0))
                every = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
                factor = builder.shuffle_vector(one, one, every)
                products = [builder.fmul(factor, part, flags=("contract",)) for part in parts]
                added.append(
                    [
                        builder.fadd(product, total, flags=("contract",))
                        for product, total in zip(products, sums[r], strict=True)
                    ]
                )
                for total, new in zip(sums[r], added[r], strict=True):
                    total.add_incoming(ir.Constant(_FLOATS, None), before)
                    total.add_incoming(new, loop)
            following = builder.add(step, _LONG(1))
            step.add_incoming(_LONG(0), before)
            step.add_incoming(following, loop)
            after = builder.append_basic_block("whole")
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
            builder.position_at_end(after)
            for r in range(n_rows):
                for n in range(n_vectors):
                    place = builder.add(builder.mul(out_width, _LONG(r)), _LONG(n * _LANES))
                    builder.store(added[r][n], vector(results, place), align=4)
            return target.get_dummy_value()

        return signature, generate

    return multiply


_six_by_16, _six_by_32, _six_by_64 = (_rows_times(_SIX, n) for n in (1, 2, 4))
_one_by_16 = _rows_times(1, 1)
# 32 registers of 16 floats hold the sums of 64 columns, 16 of 8 floats (AVX2) those of 16.
_WIDEST = 64 if binding.get_host_cpu_features().get("avx512f", False) else 16


@_inlined  # type: ignore[untyped-decorator]
def _six_times(
    a: Any, a_from: Any, b: Any, b_from: Any, n_steps: Any, out: Any, to: Any, columns: Any
) -> None:
    """`_rows_times` of six rows for at least so many columns, up to 64; out has rows of 64."""
    if columns > 32:
        _six_by_64(a, a_from, b, b_from, n_steps, out, to, 64)
    elif columns > 16:
        _six_by_32(a, a_from, b, b_from, n_steps, out, to, 64)
    else:
        _six_by_16(a, a_from, b, b_from, n_steps, out, to, 64)


def _splat(value: Any) -> Any:
    """A vector of one number, an integer or a float."""
    kind = ir.IntType(32) if isinstance(value, np.int32) else ir.FloatType()
    return ir.Constant(ir.VectorType(kind, _LANES), [value.item()] * _LANES)


@intrinsic  # type: ignore[untyped-decorator]
def _softmax_16(_context: Any, p: Any, at: Any, n_rows: Any, inverse: Any, to: Any) -> Any:
    """p becomes exp(p - the largest of its column) in 16 columns from ``at`` on, rows of 64; 1 / sums follow.

    The largest is found among integers that are ordered as the floats are; exp is 2^n times a polynomial of
    the rest (Cephes expf). Written out, because numba's loops over several arrays are not vectorised.
    """
    signature = types.void(p, types.intp, types.intp, inverse, types.intp)
    ints, fast = ir.VectorType(ir.IntType(32), _LANES), ("contract", "reassoc", "nsz", "arcp", "afn")

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        p_value, first, rows, inverse_value, place = arguments
        columns = builder.gep(target.make_array(p)(target, builder, p_value).data, [first])
        floor_of = ir.FunctionType(_FLOATS, [_FLOATS])
        floor = cgutils.get_or_insert_function(builder.module, floor_of, f"llvm.floor.v{_LANES}f32")

        def times(a: Any, b: Any) -> Any:
            return builder.fmul(a, b, flags=fast)

        def plus(a: Any, b: Any) -> Any:
            return builder.fadd(a, b, flags=fast)

        def turned(bits: Any) -> Any:
            sign = builder.ashr(bits, _splat(np.int32(31)))
            return builder.xor(bits, builder.and_(sign, _splat(_MAGNITUDE)))

        def row_at(index: Any) -> Any:
            row = builder.gep(columns, [builder.mul(index, _LONG(64))])
            return builder.bitcast(row, _FLOATS.as_pointer())

        top = cgutils.alloca_once_value(builder, _splat(np.int32(-(2**31))))
        with cgutils.for_range(builder, rows) as loop:
            bits = turned(builder.bitcast(builder.load(row_at(loop.index), align=4), ints))
            largest = builder.load(top)
            builder.store(builder.select(builder.icmp_signed(">", bits, largest), bits, largest), top)
        largest = builder.bitcast(turned(builder.load(top)), _FLOATS)
        total = cgutils.alloca_once_value(builder, _splat(_ZERO))
        with cgutils.for_range(builder, rows) as loop:
            x = builder.fsub(builder.load(row_at(loop.index), align=4), largest)
            x = builder.select(builder.fcmp_unordered(">", x, _splat(_EXP_LOW)), x, _splat(_EXP_LOW))
            n = builder.call(floor, [plus(times(x, _splat(_LOG2_E)), _splat(_HALF))])
            r = plus(plus(x, times(n, _splat(-_LN2_HIGH))), times(n, _splat(-_LN2_LOW)))
            power = _splat(_E0)
            for factor in (_E1, _E2, _E3, _E4, _E5):
                power = plus(times(power, r), _splat(factor))
            power = plus(times(times(power, r), r), plus(r, _splat(_ONE)))
            exponent = builder.add(builder.fptosi(n, ints), _splat(np.int32(127)))
            two = builder.bitcast(builder.shl(exponent, _splat(np.int32(23))), _FLOATS)
            value = times(power, two)
            builder.store(value, row_at(loop.index), align=4)
            builder.store(plus(builder.load(total), value), total)
        result = builder.gep(target.make_array(inverse)(target, builder, inverse_value).data, [place])
        one_over = builder.fdiv(_splat(_ONE), builder.load(total))
        builder.store(one_over, builder.bitcast(result, _FLOATS.as_pointer()), align=4)
        return target.get_dummy_value()

    return signature, generate


@functools.cache
def attention(head_dim: int) -> Any:
    """Attention of sequences, heads of ``head_dim`` values: (qkv, starts, lengths, out).

    qkv (T, 3 C) float32 holds query, key and value of a head side by side, head after head; sequence i is the
    ``lengths[i]`` rows from ``starts[i]``; out (T, C). Up to 64 queries lie in the lanes and meet six keys at
    a time, so that a softmax runs down the lanes; then six queries meet all values. The head size is a
    constant of the machine code: with it as a variable the loops between take twice as long. A token of
    MiniLM and a layer take 0.65, 1.6 and 2.6 us at 10, 64 and 100 tokens on a Zen 4, torch's SDPA 2.2, 2.6
    and 3.9.
    """
    size, padded = head_dim, (head_dim + 15) // 16 * 16

    @compiled
    def attend(qkv: Any, starts: Any, lengths: Any, out: Any) -> None:
        flat, stride, longest = qkv.reshape(-1), qkv.shape[1], np.max(lengths)
        scale = _ONE / np.sqrt(f32(size))
        q, p = np.zeros(size * 64, np.float32), np.empty(longest * 64, np.float32)
        v, mixed = np.zeros(longest * padded, np.float32), np.empty(_SIX * 64, np.float32)
        inverse = np.empty(64, np.float32)
        for s in range(starts.shape[0]):
            start, length = starts[s], lengths[s]
            for h in range(out.shape[1] // size):
                c = h * size  # range(0, width, size) is not proven non-negative and costs 1.7 times the time
                first = start * stride + 3 * c
                for j in range(length):
                    for d in range(size):
                        v[j * padded + d] = flat[first + j * stride + 2 * size + d]
                for i in range(0, length, _WIDEST):
                    n_queries = min(_WIDEST, length - i)
                    for r in range(n_queries):
                        for d in range(size):
                            q[d * 64 + r] = flat[first + (i + r) * stride + d] * scale
                    if length < _SIX:
                        for j in range(length):
                            key = first + j * stride + size
                            _one_by_16(flat, (key, 0, 1), q, (0, 64), size, p, j * 64, 0)
                    else:
                        for j in range(0, length, _SIX):
                            at = min(j, length - _SIX)
                            key = first + at * stride + size
                            _six_times(flat, (key, stride, 1), q, (0, 64), size, p, at * 64, n_queries)
                    for block in range(0, n_queries, _LANES):
                        _softmax_16(p, block, length, inverse, block)
                    for r in range(0, n_queries, _SIX):
                        for d in range(0, size, _WIDEST):
                            wide = min(_WIDEST, size - d)
                            _six_times(p, (r, 1, 64), v, (d, padded), length, mixed, 0, wide)
                            for row in range(min(_SIX, n_queries - r)):
                                for lane in range(wide):
                                    value = mixed[row * 64 + lane] * inverse[r + row]
                                    out[start + i + r + row, c + d + lane] = value

    return attend
