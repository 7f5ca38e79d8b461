"""The two compiled loops of the bulk engine, and the vector instructions they stand on.

Numba alone compiles the comparison of a score tile to 1 G elements/s a core; with the vector operations
written out (llvmlite, below) it is 17 G/s, and re-scoring a pair of 384 dimensions takes 28 ns, not 250. LLVM
lowers the 16-lane operations to whatever the processor has, so this is no AVX-512 code. Everything that
numba caches is in this one file, because its cache notices a change of this file only.

Tiles are row-major, flat, what lies beyond their users or items stale: a row per user for estimates, where
the users differ from list to list; a row per item for the sweep, where a block of users stays the same.
`terms` is (4, width) float32: scale, common, tail, error of a tile's items; `coefs` (q, 5) float32: common,
tail, error, one over the user's scale, and the margin per unit of item length (`bulk.codes` has the bound).
A heap is a row of k scores and items with its worst entry (lowest score, then highest item) first.
"""

# numba hands a signature function its arguments by name and `codegen` their values, so most names go unused.
# ruff: noqa: ARG001
# numba's decorators and the functions they compile carry no annotations that mypy could read.
# mypy: disable-error-code="untyped-decorator, import-untyped, no-untyped-def, no-untyped-call"

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
GROUP = 64  # items compared at once; a mask of their outcomes is one machine word
N_HITS = 2048
AHEAD = 4  # pairs between asking for a vector and using it
FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _load(builder: Any, base: Any, offset: Any, vector: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(base, [offset]), vector.as_pointer()), align=4)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))


def _long(value: int) -> Any:
    return ir.Constant(LONG, value)


@intrinsic
def reaches(
    _typing: Any, tile: Any, offset: Any, terms: Any, stride: Any, item: Any, user: Any, cut: Any
) -> Any:
    """Which of 64 items reach the cut: bit i says tile[offset + i]·scale + Σ user·term ≥ cut, at item + i.

    `user` is a tuple of coefficients for the terms after the scale.
    """
    signature = types.uint64(tile, types.intp, terms, types.intp, types.intp, user, types.float32)
    whole_numbers = isinstance(tile.dtype, types.Integer)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        tile_value, at, terms_value, row, first, factors, limit = args
        products = _data(context, builder, tile, tile_value)
        items = _data(context, builder, terms, terms_value)
        weights = [_splat(builder, builder.extract_value(factors, n)) for n in range(len(user))]
        limit, mask = _splat(builder, limit), None
        for part in range(GROUP // LANES):
            shift = _long(part * LANES)
            at_item = builder.add(first, shift)
            value = _load(builder, products, builder.add(at, shift), INTS if whole_numbers else FLOATS)
            value = builder.sitofp(value, FLOATS) if whole_numbers else value
            value = builder.fmul(value, _load(builder, items, at_item, FLOATS))
            for n, weight in enumerate(weights, 1):
                term = _load(builder, items, builder.add(at_item, builder.mul(row, _long(n))), FLOATS)
                value = builder.fadd(value, builder.fmul(weight, term))
            bits = builder.bitcast(builder.fcmp_ordered(">=", value, limit), ir.IntType(LANES))
            bits = builder.shl(builder.zext(bits, LONG), shift)
            mask = bits if mask is None else builder.or_(mask, bits)
        return mask

    return signature, codegen


@intrinsic
def reaches_across(
    _typing: Any, tile: Any, offset: Any, scale: Any, own: Any, common: Any, user: Any, cuts: Any
) -> Any:
    """Which of 64 users an item reaches: bit i says tile[offset + i]·scale + own·common ≥ cut at user + i."""
    number = types.float32
    signature = types.uint64(tile, types.intp, number, number, common, types.intp, cuts)
    whole_numbers = isinstance(tile.dtype, types.Integer)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        tile_value, at, factor, weight, common_value, first, cuts_value = args
        products = _data(context, builder, tile, tile_value)
        users = _data(context, builder, common, common_value)
        limits = _data(context, builder, cuts, cuts_value)
        factor, weight, mask = _splat(builder, factor), _splat(builder, weight), None
        for part in range(GROUP // LANES):
            shift = _long(part * LANES)
            at_user = builder.add(first, shift)
            value = _load(builder, products, builder.add(at, shift), INTS if whole_numbers else FLOATS)
            value = builder.sitofp(value, FLOATS) if whole_numbers else value
            value = builder.fmul(value, factor)
            value = builder.fadd(value, builder.fmul(weight, _load(builder, users, at_user, FLOATS)))
            limit = _load(builder, limits, at_user, FLOATS)
            bits = builder.bitcast(builder.fcmp_ordered(">=", value, limit), ir.IntType(LANES))
            bits = builder.shl(builder.zext(bits, LONG), shift)
            mask = bits if mask is None else builder.or_(mask, bits)
        return mask

    return signature, codegen


@intrinsic
def lowest_bit(_typing: Any, mask: Any) -> Any:
    """Position of the lowest set bit of a non-zero word."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@intrinsic
def add_products(_typing: Any, a: Any, at_a: Any, b: Any, at_b: Any, n_blocks: Any, lanes: Any) -> Any:
    """lanes[l] = a[l]·b[l] + a[l + 64]·b[l + 64] + … over n_blocks ≥ 1 blocks of 64, one after another."""
    signature = types.void(a, types.intp, b, types.intp, types.intp, lanes)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        a_value, a_at, b_value, b_at, blocks, lanes_value = args
        left, right = _data(context, builder, a, a_value), _data(context, builder, b, b_value)
        sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(GROUP // LANES)]

        def product(shift: Any) -> Any:
            x = _load(builder, left, builder.add(a_at, shift), FLOATS)
            return builder.fmul(x, _load(builder, right, builder.add(b_at, shift), FLOATS))

        for part, total in enumerate(sums):
            builder.store(product(_long(part * LANES)), total)
        with cgutils.for_range(builder, builder.sub(blocks, _long(1))) as loop:
            block = builder.mul(builder.add(loop.index, _long(1)), _long(GROUP))
            for part, total in enumerate(sums):
                shift = builder.add(block, _long(part * LANES))
                builder.store(builder.fadd(builder.load(total), product(shift)), total)
        out = _data(context, builder, lanes, lanes_value)
        for part, total in enumerate(sums):
            at = builder.bitcast(builder.gep(out, [_long(part * LANES)]), FLOATS.as_pointer())
            builder.store(builder.load(total), at, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_lanes(_typing: Any, lanes: Any) -> Any:
    """Sum of 64 lanes in halves: lane l + lane l + 32, then + 16 … the order of `fixed_order_dot`."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        base = _data(context, builder, lanes, args[0])
        a, b, c, d = (_load(builder, base, _long(part * LANES), FLOATS) for part in range(4))
        total, width = builder.fadd(builder.fadd(a, c), builder.fadd(b, d)), LANES
        while width > 1:
            width //= 2
            indices = ir.VectorType(INT, width)
            low = builder.shuffle_vector(total, total, ir.Constant(indices, list(range(width))))
            high = builder.shuffle_vector(total, total, ir.Constant(indices, list(range(width, 2 * width))))
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(INT, 0))

    return types.float32(lanes), codegen


@intrinsic
def fetch_early(_typing: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array[at] before it is needed."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, array, args[0]), [args[1]])
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT, INT, INT])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [pointer, ir.Constant(INT, 0), ir.Constant(INT, 3), ir.Constant(INT, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


# Without reference counts on arrays, which cost 50 ns for every call between compiled functions; so nothing
# here allocates.
compiled = njit(nogil=True, cache=True, _nrt=False)


@compiled
def dot(a, at_a, b, at_b, n_dims, lanes):
    """`kernels.topk.fixed_order_dot` of a[at_a:] and b[at_b:], bit for bit."""
    n_blocks = n_dims // GROUP
    if n_blocks:
        add_products(a, at_a, b, at_b, n_blocks, lanes)
    else:
        lanes[:] = 0
    for at in range(n_blocks * GROUP, n_dims):
        product = a[at_a + at] * b[at_b + at]
        lanes[at % GROUP] = lanes[at % GROUP] + product if n_blocks else product
    return add_lanes(lanes)


@compiled
def replace_worst(scores, items, row, score, item):
    """Put an entry in the place of the worst of a heap, scores[row] and items[row], and restore its order."""
    at, k = 0, scores.shape[1]
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        other = child + 1
        if other < k:
            worse = scores[row, other] < scores[row, child]
            if worse or (scores[row, other] == scores[row, child] and items[row, other] > items[row, child]):
                child = other
        if scores[row, child] > score or (scores[row, child] == score and items[row, child] < item):
            break
        scores[row, at] = scores[row, child]
        items[row, at] = items[row, child]
        at = child
    scores[row, at] = score
    items[row, at] = item


@compiled
def spread(item):
    """64 bits in which close item numbers lie far apart (Fibonacci hashing)."""
    return np.uint64(item) * np.uint64(0x9E3779B97F4A7C15)


@compiled
def word_of(hashed, n_words):
    """Which word of a user's marks an item falls on; n_words is a power of two."""
    return np.int64((hashed >> np.uint64(32)) & np.uint64(n_words - 1))


@compiled
def pattern_of(hashed):
    """The two bits of that word that stand for the item (a Bloom filter within one word)."""
    one = np.uint64(1)
    return (one << (hashed >> np.uint64(58))) | (one << ((hashed >> np.uint64(52)) & np.uint64(63)))


@compiled
def mark_listed(listed_at, listed, marks):
    """Set, in each user's row of marks (q, words) uint64, the bits of every item of the user's list."""
    for user in range(len(marks)):
        for at in range(listed_at[user], listed_at[user + 1]):
            hashed = spread(listed[at])
            marks[user, word_of(hashed, marks.shape[1])] |= pattern_of(hashed)


@compiled
def is_allowed(user, item, eligible, group, listed_at, listed, marks):
    """Whether a user may get an item: eligible (groups, items or 0) for the user's group, and on no list.

    An item whose bits are not both marked is on no list: one look instead of a binary search through memory
    that is not in the cache. With 16 bits an item, 3 % of the others are searched in vain.
    """
    if eligible.shape[1] and not eligible[group[user], item]:
        return False
    hashed = spread(item)
    pattern = pattern_of(hashed)
    if marks[user, word_of(hashed, marks.shape[1])] & pattern != pattern:
        return True
    low, end = listed_at[user], listed_at[user + 1]
    high = end
    while low < high:
        middle = (low + high) >> 1
        if listed[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low == end or listed[low] != item


@compiled
def best_first(scores, items, n, k):
    """Reorder n entries so that the best k stand first (quickselect); returns the k-th best score."""
    low, high = 0, n - 1
    while low < high:
        pivot = scores[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while scores[left] > pivot:
                left += 1
            while scores[right] < pivot:
                right -= 1
            if left <= right:
                scores[left], scores[right] = scores[right], scores[left]
                items[left], items[right] = items[right], items[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            break
    worst = scores[0]
    for at in range(1, k):
        worst = min(worst, scores[at])
    return worst


@compiled
def estimate_rows(tile, n_columns, users, items, coefs, kept, limits):
    """Collect each user's best allowed items of a tile by estimated score; no vector is read.

    tile has a row a user; users (rows,) are positions in coefs and kept; items is (terms, item_nums); kept is
    (scores (q, room) float32, items (q, room) int64, count (q,) int64, cut (q,) float32, k). Entries above
    the cut are appended; a full row is cut back to its best k, which a heap would keep at 450 ns an entry
    instead of 15.
    """
    terms, item_nums = items
    eligible, group_of, listed_at, listed, marks = limits
    all_scores, all_items, counts, cuts, k = kept
    room, width, flat = all_scores.shape[1], terms.shape[1], terms.reshape(-1)
    for row in range(len(users)):
        user = users[row]
        common, inverse = coefs[user, 0], coefs[user, 3]
        cut, n = np.float32(cuts[user] * inverse), counts[user]
        for group in range(0, n_columns, GROUP):
            mask = reaches(tile, row * width + group, flat, width, group, (common,), cut)
            if n_columns - group < GROUP:
                mask &= (np.uint64(1) << np.uint64(n_columns - group)) - np.uint64(1)
            while mask:
                at = group + np.int64(lowest_bit(mask))
                mask &= mask - np.uint64(1)
                score = (np.float32(tile[row * width + at]) * terms[0, at] + common * terms[1, at]) / inverse
                item = item_nums[at]
                if score < cuts[user] or not is_allowed(
                    user, item, eligible, group_of, listed_at, listed, marks
                ):
                    continue
                if n == room:
                    cuts[user] = best_first(all_scores[user], all_items[user], n, k)
                    cut, n = np.float32(cuts[user] * inverse), k
                all_scores[user, n] = score
                all_items[user, n] = item
                n += 1
        counts[user] = n


@compiled
def keep_best(kept):
    """Cut every row of what `estimate_rows` collected back to its best k; the k-th becomes its cut."""
    scores, items, counts, cuts, k = kept
    for user in range(len(counts)):
        if counts[user] >= k:
            cuts[user] = best_first(scores[user], items[user], counts[user], k)
            counts[user] = k


@compiled
def score_rows(queries, vectors, item_nums, n_dims, scores, lanes):
    """Scores (q, m) of items (q, m), -1 skipped, in the fixed order; queries and vectors flat."""
    for user in range(item_nums.shape[0]):
        for at in range(item_nums.shape[1]):
            if at + AHEAD < item_nums.shape[1] and item_nums[user, at + AHEAD] >= 0:
                for line in range(0, n_dims, 16):
                    fetch_early(vectors, item_nums[user, at + AHEAD] * n_dims + line)
            if item_nums[user, at] >= 0:
                offset = item_nums[user, at] * n_dims
                scores[user, at] = dot(queries, user * n_dims, vectors, offset, n_dims, lanes)


@compiled
def sweep_items(tile, n_items, users, items, coefs, crowd, heaps, limits, exact):
    """Re-score the allowed pairs of a tile whose upper bound reaches the user's threshold; keep the best.

    tile has a row an item; users is (first row, one past the last) of its columns; items is (terms,
    item_nums, largest tail, largest error); crowd is (common of its users (width,), cuts (2, width)), width
    at least the users and a multiple of 64; exact is (floor (q,), queries flat, vectors flat, places
    (n_items,) of the tile's items among them, n_dims, longest item of the tile, hits (N_HITS, 2) int64, lanes
    (64,)).

    64 pairs at once are compared by scale and common alone, as if each item had the tile's largest tail and
    error, which takes half the time; what passes is compared by its own. Found pairs are collected before
    they are scored, so that their vectors can be fetched early.
    """
    terms, item_nums = items[0], items[1]
    common, cuts = crowd
    coarse, fine = cuts[0], cuts[1]
    hits, width, n_hits = exact[6], len(common), 0
    set_cuts(cuts, users, coefs, items, heaps[0], exact)
    for item in range(n_items):
        scale, own = terms[0, item], terms[1, item]
        tail, error = terms[2, item], terms[3, item]
        if error == -np.inf:
            continue
        for group in range(0, width, GROUP):
            if n_hits > N_HITS - GROUP:
                rescore_hits(hits, n_hits, item_nums, heaps, limits, exact)
                set_cuts(cuts, users, coefs, items, heaps[0], exact)
                n_hits = 0
            mask = reaches_across(tile, item * width + group, scale, own, common, group, coarse)
            while mask:
                at = group + np.int64(lowest_bit(mask))
                mask &= mask - np.uint64(1)
                user = users[0] + at
                bound = np.float32(tile[item * width + at]) * scale + coefs[user, 0] * own
                if bound + coefs[user, 1] * tail + coefs[user, 2] * error >= fine[at]:
                    hits[n_hits, 0] = user
                    hits[n_hits, 1] = item
                    n_hits += 1
    rescore_hits(hits, n_hits, item_nums, heaps, limits, exact)


@compiled
def set_cuts(cuts, users, coefs, items, scores, exact):
    """What must be reached by each user of a tile, the floor or the heap's k-th score, in units of the bound:
    by scale and common, row 0; by all four terms, row 1.
    """
    floor, length = exact[0], exact[5]
    for user in range(users[0], users[1]):
        reached = max(scores[user, 0], floor[user]) - coefs[user, 4] * length
        reached *= coefs[user, 3]
        most = np.float64(coefs[user, 1]) * items[2] + np.float64(coefs[user, 2]) * items[3]
        cuts[0, user - users[0]] = np.float32(reached - most)
        cuts[1, user - users[0]] = np.float32(reached)
    cuts[:, users[1] - users[0] :] = np.inf


@compiled
def rescore_hits(hits, n_hits, item_nums, heaps, limits, exact):
    """Score the allowed of the found pairs in the fixed order; put those that belong there into the heaps."""
    floor, queries, vectors, places, n_dims, _, _, lanes = exact
    scores, items = heaps
    eligible, group_of, listed_at, listed, marks = limits
    n_words = marks.shape[1]
    for hit in range(n_hits):
        if hit + AHEAD < n_hits:
            user, column = hits[hit + AHEAD, 0], hits[hit + AHEAD, 1]
            fetch_early(marks, user * n_words + word_of(spread(item_nums[column]), n_words))
            for line in range(0, n_dims, 16):
                fetch_early(queries, user * n_dims + line)
            if column != hits[hit + AHEAD - 1, 1]:
                for line in range(0, n_dims, 16):
                    fetch_early(vectors, places[column] * n_dims + line)
        user, column = hits[hit, 0], hits[hit, 1]
        item = item_nums[column]
        if not is_allowed(user, item, eligible, group_of, listed_at, listed, marks):
            continue
        score = dot(queries, user * n_dims, vectors, places[column] * n_dims, n_dims, lanes)
        worst = scores[user, 0]
        if score < floor[user] or score < worst or (score == worst and item > items[user, 0]):
            continue
        replace_worst(scores, items, user, score, item)
