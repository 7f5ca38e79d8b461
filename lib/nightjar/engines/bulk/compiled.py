"""The compiled loops of the bulk engine, and the vector instructions they stand on.

Numba alone compiles the comparison of a score tile to 1 G elements/s a core; with the vector operations
written out (llvmlite, below) it is 17 G/s, and re-scoring a pair of 384 dimensions takes 28 ns, not 250. LLVM
lowers the 16-lane operations to whatever the processor has, so this is no AVX-512 code. Everything that
numba caches is in this one file, because its cache notices a change of this file only.

Where the processor has VNNI, int8 products are made here too (`multiply`), six users with 64 items at a time,
and compared while they are in the first cache. Elsewhere torch makes them in larger tiles, row-major, flat,
what lies beyond their users or items stale: a row per user for estimates, where the users differ from list to
list; a row per item for the sweep, where a block of users stays the same.
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
HALF = GROUP // 2  # items of a product where a list has no more left
USERS = 6  # of a product: with 64 items its sums fill 24 of 32 registers
TOGETHER = 4  # codes that one lane of a product multiplies and adds at once
EIGHT = 8  # one list of so many is asked what it promises before the others
N_HITS = 2048
AHEAD = 4  # pairs between asking for a vector and using it
FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
VNNI = "llvm.x86.avx512.vpdpbusd.512"  # declared as before LLVM 22; newer releases bring that up to date


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _load(builder: Any, base: Any, offset: Any, vector: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(base, [offset]), vector.as_pointer()), align=4)


def _starts(context: Any, builder: Any, kinds: Any, arrays: Any) -> Any:
    """Where each array of a tuple begins."""
    return [
        _data(context, builder, kind, builder.extract_value(arrays, n)) for n, kind in enumerate(kinds.types)
    ]


def _splat(builder: Any, value: Any, vector: Any = FLOATS) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))


def _long(value: int) -> Any:
    return ir.Constant(LONG, value)


@intrinsic
def reaches(
    _typing: Any, tile: Any, offset: Any, terms: Any, stride: Any, item: Any, common: Any, cut: Any
) -> Any:
    """Which of 64 items reach the cut: bit i says tile[offset + i]·scale + common·own ≥ cut, at item + i."""
    signature = types.uint64(tile, types.intp, terms, types.intp, types.intp, types.float32, types.float32)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        tile_value, at, terms_value, row, first, weight, limit = args
        products = _data(context, builder, tile, tile_value)
        scales = builder.gep(_data(context, builder, terms, terms_value), [first])
        owns = builder.gep(scales, [row])
        weight, limit, mask = _splat(builder, weight), _splat(builder, limit), None
        for part in range(GROUP // LANES):
            shift = _long(part * LANES)
            value = _load(builder, products, builder.add(at, shift), FLOATS)
            scale, own = _load(builder, scales, shift, FLOATS), _load(builder, owns, shift, FLOATS)
            mask = _reached(builder, value, scale, builder.fmul(weight, own), limit, shift, mask)
        return mask

    return signature, codegen


@intrinsic
def reaches_across(
    _typing: Any, tile: Any, offset: Any, scale: Any, own: Any, common: Any, user: Any, cuts: Any
) -> Any:
    """Which of 64 users an item reaches: bit i says tile[offset + i]·scale + own·common ≥ cut at user + i."""
    number = types.float32
    signature = types.uint64(tile, types.intp, number, number, common, types.intp, cuts)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        tile_value, at, factor, weight, common_value, first, cuts_value = args
        products = _data(context, builder, tile, tile_value)
        users = _data(context, builder, common, common_value)
        limits = _data(context, builder, cuts, cuts_value)
        factor, weight, mask = _splat(builder, factor), _splat(builder, weight), None
        for part in range(GROUP // LANES):
            shift = _long(part * LANES)
            at_user = builder.add(first, shift)
            value = _load(builder, products, builder.add(at, shift), FLOATS)
            own = builder.fmul(weight, _load(builder, users, at_user, FLOATS))
            limit = _load(builder, limits, at_user, FLOATS)
            mask = _reached(builder, value, factor, own, limit, shift, mask)
        return mask

    return signature, codegen


def _reached(builder: Any, product: Any, scale: Any, own: Any, cut: Any, shift: Any, mask: Any | None) -> Any:
    """The mask and, from bit `shift` on, where product · scale + own ≥ cut."""
    value = builder.fadd(builder.fmul(product, scale), own)
    bits = builder.bitcast(builder.fcmp_ordered(">=", value, cut), ir.IntType(LANES))
    bits = builder.shl(builder.zext(bits, LONG), shift)
    return bits if mask is None else builder.or_(mask, bits)


def _multiply(n_vectors: int) -> Any:
    """Six users with n_vectors · 16 items; the sums stay in registers until they are compared."""

    @intrinsic
    def multiply(
        _typing: Any,
        room: Any,
        at: Any,
        n_words: Any,
        users: Any,
        start: Any,
        terms: Any,
        stride: Any,
        first: Any,
    ) -> Any:
        """The products of six users with the items from `first` on, and which of them reach the users' cuts.

        tile[64·r + i] = codes of user positions[start + r] · codes of item i, int32, exact; bit i of masks[r]
        says tile[64·r + i]·scale + commons[r]·own ≥ cuts[r]. room is (panels, tile, commons (6,), cuts (6,),
        masks (6,) uint64), its panels from `at` on what `pack_items` made of n_words · 4 codes of the items;
        users is (codes (q, dimensions) int8, sums (q,) int32, positions), sums being -128 times the sum of
        a user's codes, which takes back that the items' stand 128 too high; terms, flat, has the scale of an
        item and `stride` later its own common.
        """
        signature = types.void(room, types.intp, types.intp, users, types.intp, terms, types.intp, types.intp)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            room_value, panel_at, steps, users_value, begin, terms_value, row_length, item = args
            panels, tile, commons, cuts, masks = _starts(context, builder, room, room_value)
            codes, sums, positions = _starts(context, builder, users, users_value)
            width = context.make_array(users.types[0])(
                context, builder, builder.extract_value(users_value, 0)
            )
            width = cgutils.unpack_tuple(builder, width.shape)[1]
            kind = ir.FunctionType(INTS, [INTS, INTS, INTS])
            add = cgutils.get_or_insert_function(builder.module, kind, VNNI)
            panel, rows, before_all = builder.gep(panels, [panel_at]), [], []
            for row in range(USERS):
                user = builder.load(builder.gep(positions, [builder.add(begin, _long(row))]))
                rows.append(builder.gep(codes, [builder.mul(user, width)]))
                before_all.append(_splat(builder, builder.load(builder.gep(sums, [user])), INTS))
            before, loop = builder.block, builder.append_basic_block("dimensions")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(LONG)
            totals = [[builder.phi(INTS) for _ in range(n_vectors)] for _ in range(USERS)]
            word = builder.mul(step, _long(n_vectors * LANES))
            items = [
                _load(builder, panel, builder.add(word, _long(part * LANES)), INTS)
                for part in range(n_vectors)
            ]
            byte, added = builder.mul(step, _long(TOGETHER)), []
            for row in range(USERS):
                at_user = builder.bitcast(builder.gep(rows[row], [byte]), INT.as_pointer())
                user = _splat(builder, builder.load(at_user, align=1), INTS)
                added.append([builder.call(add, [totals[row][n], items[n], user]) for n in range(n_vectors)])
                for n in range(n_vectors):
                    totals[row][n].add_incoming(before_all[row], before)
                    totals[row][n].add_incoming(added[row][n], loop)
            following = builder.add(step, _long(1))
            step.add_incoming(_long(0), before)
            step.add_incoming(following, loop)
            after = builder.append_basic_block("compare")
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
            builder.position_at_end(after)
            scales = builder.gep(_data(context, builder, terms, terms_value), [item])
            owns = builder.gep(scales, [row_length])
            found: list[Any] = [None] * USERS
            for n in range(n_vectors):
                shift = _long(n * LANES)
                scale, own = _load(builder, scales, shift, FLOATS), _load(builder, owns, shift, FLOATS)
                for row in range(USERS):
                    place = builder.gep(tile, [_long(row * GROUP + n * LANES)])
                    builder.store(added[row][n], builder.bitcast(place, INTS.as_pointer()), align=4)
                    common = _splat(builder, builder.load(builder.gep(commons, [_long(row)])))
                    cut = _splat(builder, builder.load(builder.gep(cuts, [_long(row)])))
                    value, common = builder.sitofp(added[row][n], FLOATS), builder.fmul(common, own)
                    found[row] = _reached(builder, value, scale, common, cut, shift, found[row])
            for row in range(USERS):
                builder.store(found[row], builder.gep(masks, [_long(row)]))
            return context.get_dummy_value()

        return signature, codegen

    return multiply


multiply_group, multiply_half = _multiply(GROUP // LANES), _multiply(HALF // LANES)


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
def first_bits(count):
    """A word whose `count` lowest bits are set, all of them from 64 on."""
    return ~np.uint64(0) if count >= GROUP else (np.uint64(1) << np.uint64(count)) - np.uint64(1)


@compiled
def choose_lists(products, terms, shares, n_lists, n_first, room, chosen):
    """The most promising lists of users, chosen (rows, count) int64: the best of all first, and the n_first
    best in the first n_first columns, if n_first > 0.

    products (rows, width) float32: with each list's centroid, width a multiple of 64; a list promises
    products · terms[0] + shares[row] · terms[1], terms (2, width); room is (scores float32, lists int32), of
    width. What every eighth list promises tells which are worth a look.
    """
    scores, lists = room
    count, flat, row_length = chosen.shape[1], products.reshape(-1), products.shape[1]
    n_asked = (n_lists + EIGHT - 1) // EIGHT
    rank = count * 5 // (4 * EIGHT) + EIGHT
    for row in range(len(chosen)):
        share, cut, n = np.float32(shares[row]), np.float32(-np.inf), 0
        if rank < n_asked:
            for at in range(n_asked):
                lists[at] = EIGHT * at
                scores[at] = products[row, EIGHT * at] + share * terms[1, EIGHT * at]
            cut = best_first(scores, lists, n_asked, rank)
        for _ in range(2):
            n = 0
            for group in range(0, n_lists, GROUP):
                mask = reaches(
                    flat, row * row_length + group, terms.reshape(-1), row_length, group, share, cut
                )
                mask &= first_bits(n_lists - group)
                while mask:
                    place = group + np.int64(lowest_bit(mask))
                    mask &= mask - np.uint64(1)
                    lists[n] = place
                    scores[n] = products[row, place] + share * terms[1, place]
                    n += 1
            if n >= count:
                break
            cut = np.float32(-np.inf)
        if n < count:  # numbers beyond bfloat16's, which compare with nothing
            for at in range(count):
                scores[at], lists[at] = 0, at
        elif count < n:
            best_first(scores, lists, n, count)
        if n_first:
            best_first(scores, lists, count, n_first)
            best_first(scores, lists, n_first, 1)
        for at in range(count):
            chosen[row, at] = lists[at]


@compiled
def keep_row(mask, tile, at, n_items, user, first, items, coefs, kept, limits):
    """Append to a user's entries the allowed of n_items ≤ 64 items whose estimated score is above the cut.

    mask says which reach it; tile[at + i] is the product with item first + i of items, (terms, item_nums);
    kept is (scores (q, room) float32, items (q, room) int64, count (q,) int64, cut (q,) float32, k). A full
    row is cut back to its best k, which a heap would keep at 450 ns an entry instead of 15.
    """
    terms, item_nums = items
    eligible, group_of, listed_at, listed, marks = limits
    all_scores, all_items, counts, cuts, k = kept
    common, inverse, n = coefs[user, 0], coefs[user, 3], counts[user]
    mask &= first_bits(n_items)
    while mask:
        lane = np.int64(lowest_bit(mask))
        mask &= mask - np.uint64(1)
        product, place = np.float32(tile[at + lane]), first + lane
        score = (product * terms[0, place] + common * terms[1, place]) / inverse
        item = item_nums[place]
        if score < cuts[user] or not is_allowed(user, item, eligible, group_of, listed_at, listed, marks):
            continue
        if n == all_scores.shape[1]:
            cuts[user] = best_first(all_scores[user], all_items[user], n, k)
            n = k
        all_scores[user, n] = score
        all_items[user, n] = item
        n += 1
    counts[user] = n


@compiled
def estimate_rows(tile, n_columns, users, items, coefs, kept, limits):
    """Collect each user's best allowed items of a tile by estimated score; no vector is read.

    tile has a row a user; users (rows,) are positions in coefs and kept; items and kept as in `keep_row`.
    """
    terms, cuts = items[0], kept[3]
    flat, width = terms.reshape(-1), terms.shape[1]
    for row in range(len(users)):
        user = users[row]
        for first in range(0, n_columns, GROUP):
            at, n_items = row * width + first, min(GROUP, n_columns - first)
            cut = np.float32(cuts[user] * coefs[user, 3])
            mask = reaches(tile, at, flat, width, first, coefs[user, 0], cut)
            keep_row(mask, tile, at, n_items, user, first, items, coefs, kept, limits)


@compiled
def pack_items(words, first, n_lanes, n_words, panels, at):
    """Lay the codes of n_lanes items side by side, as `multiply` takes them: four of each, the next four …

    words (n, dimensions / 4) int32 holds four codes a word, of which the first n_words are taken; they become
    unsigned, 128 more than they are.
    """
    for lane in range(n_lanes):
        for word in range(n_words):
            panels[at + word * n_lanes + lane] = words[first + lane, word] ^ np.int32(-0x7F7F7F80)


@compiled
def multiply_lanes(n_lanes, room, n_words, users, start, flat, stride, first):
    """`multiply` with the 64 or 32 items that stand first among the packed."""
    if n_lanes == GROUP:
        multiply_group(room, 0, n_words, users, start, flat, stride, first)
    else:
        multiply_half(room, 0, n_words, users, start, flat, stride, first)


@compiled
def multiply_once(users, words, n_lanes, terms, room):
    """The products and masks of six users and 64 or 32 items in `room`: see `multiply`."""
    n_words = words.shape[1]
    pack_items(words, 0, n_lanes, n_words, room[0], 0)
    multiply_lanes(n_lanes, room, n_words, users, 0, terms.reshape(-1), terms.shape[1], 0)


@compiled
def group_visits(visits, starts, visitors):
    """Turn round which lists each user visits, (q, m): the users of list l, ascending, come to stand at
    visitors[starts[l]:starts[l + 1]]; starts (lists + 1,) and visitors (q · m,) are filled.
    """
    n_users, n_lists = visits.shape[0], len(starts) - 1
    starts[:] = 0
    for user in range(n_users):
        for at in visits[user]:
            starts[at + 1] += 1
    for at in range(n_lists):
        starts[at + 1] += starts[at]
    for user in range(n_users):
        for at in visits[user]:
            visitors[starts[at]] = user
            starts[at] += 1
    for at in range(n_lists, 0, -1):
        starts[at] = starts[at - 1]
    starts[0] = 0


@compiled
def estimate_lists(visits, users, items, coefs, kept, limits, room):
    """Collect each user's best allowed items of the lists that it visits by estimated score.

    visits (lists + 1,): list l is visited by the users at positions[visits[l]:visits[l + 1]], and five more
    follow the last; users and room as in `multiply`, with room for 64 items; items is (words, terms,
    item_nums, where each list starts (lists + 1,)), with 64 rows beyond the last.
    """
    positions = users[2]
    words, terms, item_nums, list_starts = items
    tile, commons, limit, masks = room[1], room[2], room[3], room[4]
    all_scores, all_items, counts, cuts, marks = kept[0], kept[1], kept[2], kept[3], limits[4]
    flat, stride, n_words, width = terms.reshape(-1), terms.shape[1], words.shape[1], all_scores.shape[1]
    for at in range(len(list_starts) - 1):
        begin, end = visits[at], visits[at + 1]
        if begin == end:
            continue
        for first in range(list_starts[at], list_starts[at + 1], GROUP):
            n_items = min(GROUP, list_starts[at + 1] - first)
            n_lanes = GROUP if n_items > HALF else HALF
            pack_items(words, first, n_lanes, n_words, room[0], 0)
            for start in range(begin, end, USERS):
                for ahead in range(start + USERS, min(start + 2 * USERS, end)):
                    place = positions[ahead] * width + counts[positions[ahead]]
                    fetch_early(all_scores, place)
                    fetch_early(all_items, place)
                    fetch_early(marks, positions[ahead] * marks.shape[1])
                for row in range(USERS):
                    user = positions[start + row]
                    commons[row], limit[row] = coefs[user, 0], cuts[user] * coefs[user, 3]
                multiply_lanes(n_lanes, room, n_words, users, start, flat, stride, first)
                for row in range(min(USERS, end - start)):
                    user, found = positions[start + row], (terms, item_nums)
                    keep_row(masks[row], tile, row * GROUP, n_items, user, first, found, coefs, kept, limits)


@compiled
def keep_best(kept):
    """Cut every row of what `estimate_rows` collected back to its best k; the k-th becomes its cut."""
    scores, items, counts, cuts, k = kept
    for user in range(len(counts)):
        if counts[user] >= k:
            cuts[user] = best_first(scores[user], items[user], counts[user], k)
            counts[user] = k


@compiled
def score_rows(queries, vectors, item_nums, n_dims, order, scores, lanes):
    """Scores (q, m) of items (q, m), -1 skipped, in the fixed order of sums; queries and vectors flat.

    order (q,): whom to take when; users who share items should follow each other, as these stay in the cache.
    """
    for user in order:
        for at in range(item_nums.shape[1]):
            if at + AHEAD < item_nums.shape[1] and item_nums[user, at + AHEAD] >= 0:
                for line in range(0, n_dims, 16):
                    fetch_early(vectors, item_nums[user, at + AHEAD] * n_dims + line)
            if item_nums[user, at] >= 0:
                offset = item_nums[user, at] * n_dims
                scores[user, at] = dot(queries, user * n_dims, vectors, offset, n_dims, lanes)


@compiled
def sweep_items(tile, n_items, users, items, coefs, common, cuts, heaps, limits, exact):
    """Re-score the allowed pairs of a tile whose upper bound reaches the user's threshold; keep the best.

    tile has a row an item; users is (first row, one past the last) of its columns; items is (terms,
    item_nums, largest tail, largest error); common (width,) is that of the tile's users, width at least their
    number and a multiple of 64, and cuts (2, at least width) is scratch memory; exact is (floor (q,), queries
    flat, vectors flat, places (n_items,) of the tile's items among them, n_dims, longest item of the tile,
    hits (N_HITS, 2) int64, lanes (64,)).

    64 pairs at once are compared by scale and common alone, as if each item had the tile's largest tail and
    error, which takes half the time; what passes is compared by its own. Found pairs are collected before
    they are scored, so that their vectors can be fetched early.
    """
    terms, item_nums = items[0], items[1]
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
def sweep_codes(tile, users, coefs, room, cuts, heaps, limits, exact):
    """`sweep_items` with the products made here: all users meet a tile, as many at once as cuts holds.

    tile is (words, first, n_items, how many words of an item are multiplied, what `sweep_items` calls items);
    users and room as in `multiply`, positions 0 … q - 1 and five more, with room for all of the tile's items.
    """
    words, first, n_items, n_words, items = tile
    terms, item_nums = items[0], items[1]
    products, commons, limit, masks = room[1], room[2], room[3], room[4]
    flat, coarse, fine, hits, stride = terms.reshape(-1), cuts[0], cuts[1], exact[6], terms.shape[1]
    n_users, at_once = len(users[0]), cuts.shape[1]
    for group in range(0, n_items, GROUP):
        pack_items(words, first + group, GROUP, n_words, room[0], group * n_words)
    for begin in range(0, n_users, at_once):
        end, n_hits = min(begin + at_once, n_users), 0
        set_cuts(cuts, (begin, end), coefs, items, heaps[0], exact)
        for group in range(0, n_items, GROUP):
            there = first_bits(n_items - group)
            for start in range(begin, end, USERS):
                n_rows = min(USERS, end - start)
                if n_hits > N_HITS - USERS * GROUP:
                    rescore_hits(hits, n_hits, item_nums, heaps, limits, exact)
                    set_cuts(cuts, (begin, end), coefs, items, heaps[0], exact)
                    n_hits = 0
                for row in range(n_rows):
                    commons[row], limit[row] = coefs[start + row, 0], coarse[start + row - begin]
                multiply_group(room, group * n_words, n_words, users, start, flat, stride, group)
                for row in range(n_rows):
                    user, mask = start + row, masks[row] & there
                    while mask:
                        lane = np.int64(lowest_bit(mask))
                        mask &= mask - np.uint64(1)
                        item = group + lane
                        bound = np.float32(products[row * GROUP + lane]) * terms[0, item]
                        bound += coefs[user, 0] * terms[1, item]
                        bound += coefs[user, 1] * terms[2, item] + coefs[user, 2] * terms[3, item]
                        if bound >= fine[user - begin]:
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
