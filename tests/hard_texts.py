"""Small models, as in texts.py, on which it is easy to go wrong."""

from __future__ import annotations

_TURNED = """qh = Reshape(q0, heads)
        kh = Reshape(k0, heads)
        q = Transpose<perm=[0,2,1,3]>(qh)
        k = Transpose<perm=[0,2,1,3]>(kh)
        qc = Mul(q, cos)
        q1, q2 = Split<axis=3>(q)
        qn = Neg(q2)
        qr = Concat<axis=3>(qn, q1)
        qs = Mul(qr, sin)
        qt = Add(qc, qs)
        kc = Mul(k, cos)
        k1, k2 = Split<axis=3>(k)
        kn = Neg(k2)
        kr = Concat<axis=3>(kn, k1)
        ks = Mul(kr, sin)
        kt = Add(kc, ks)
        ky = Transpose<perm=[0,1,3,2]>(kt)
        a = MatMul(qt, ky)
        p = Softmax<axis=-1>(a)
        v = MatMul(x, w3)
        u = Unsqueeze(v, one)
        o = MatMul(p, u)
        y = MatMul(o, w4)
    }"""
"""Attention on q0 and k0, of which channels j and j + 4 of each head turn together, by cos and sin."""
_PAIRED = """{0}1 = Slice({0}, zero, far, last, two)
        {0}2 = Slice({0}, one, far, last, two)
        {0}n = Neg({0}2)
        {0}u = Unsqueeze({0}n, fourth)
        {0}o = Unsqueeze({0}1, fourth)
        {0}p = Concat<axis=4>({0}u, {0}o)
        {0}r = Reshape({0}p, flat)"""
_HALVED = """{0}1, {0}2 = Split<axis=3>({0})
        {0}n = Neg({0}2)
        {0}r = Concat<axis=3>({0}n, {0}1)"""
_NEIGHBOURS = _TURNED.replace(_HALVED.format("q"), _PAIRED.format("q")).replace(
    _HALVED.format("k"), _PAIRED.format("k")
)
"""The same of channels 2j and 2j + 1."""
NORMALIZED = """(float[{n},6] x) => (float[{n},3] y) <float[8,6] w1, float[{c}] c, float[8] n_scale, float[8] n_shift,
    float[8] n_mean, float[8] n_var, float[3,8] w2, float[3] b2> {{
    h = Gemm<transB=1>(x, w1, c)
    n = BatchNormalization(h, n_scale, n_shift, n_mean, n_var)
    r = Relu(n)
    y = Gemm<transB=1>(r, w2, b2)
}}"""
"""What Gemm adds may have one number for all channels, a row of them, a column or both."""
_PERCEPTRON = """s = Add(x, o)
        g = MatMul(s, w5)
        u = MatMul(s, w6)
        gs = Sigmoid(g)
        gg = Mul(g, gs)
        m = Mul(gg, u)
        d = MatMul(m, w7)
        y = Add(s, d)
    }"""
"""What follows attention, gated."""
SHRINKS = {
    "weights behind a transpose": """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8,3] w2> {
        t = Transpose(w1)
        h = MatMul(x, t)
        y = MatMul(h, w2)
    }""",
    "weight on the left": """(float[N,6,5] x) => (float[N,3,5] y) <float[8,6] w1, float[8,1] b1, float[3,8] w2> {
        h = MatMul(w1, x)
        a = Add(h, b1)
        y = MatMul(w2, a)
    }""",
    "one weight read and written": """(float[N,6] x) => (float[N,6] y) <float[8,6] w1> {
        h = Gemm<transB=1>(x, w1)
        r = Tanh(h)
        y = Gemm(r, w1)
    }""",
    "embedding and classifier tied": """(int64[N,4] x) => (float[N,4,10] y) <float[10,8] table, float[8,8] w1> {
        e = Gather(table, x)
        h = MatMul(e, w1)
        r = Relu(h)
        t = Transpose(table)
        y = MatMul(r, t)
    }""",
    "a value with itself": """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[16,4] w2, float[4,3] w3> {
        h = MatMul(x, w1)
        s = Sigmoid(h)
        m = Mul(h, s)
        c = Concat<axis=1>(m, m)
        k = MatMul(c, w2)
        a = Add(k, k)
        y = MatMul(a, w3)
    }""",
    "a row before normalization": NORMALIZED.format(n="N", c="1,8"),
    "a number before normalization": NORMALIZED.format(n="N", c="1,1"),
    "a column before normalization": NORMALIZED.format(n="2", c="2,1"),
    "a matrix before normalization": NORMALIZED.format(n="2", c="2,8"),
    "a vector reads channels": """(float[N,3,6,6] x) => (float[N] y)
        <float[8,3,3,3] w1, float[8] b1, float[8] v, float[1] c> {
        h = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r = Relu(h)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        m = MatMul(f, v)
        y = Add(m, c)
    }""",
    "a vector reads channels from the left": """(float[N,3,20] x) => (float[N,20] y)
        <float[8,3,3] w1, float[8] b1, float[8] v, float[20] c> {
        h = Conv<pads=[1,1]>(x, w1, b1)
        r = Relu(h)
        m = MatMul(v, r)
        y = Add(m, c)
    }""",
    "a vector reads positions": """(float[N,3,5,6] x) => (float[N,2,5] y)
        <float[8,3,1,1] w1, float[6] v, float[2,8,1] w2> {
        h = Conv(x, w1)
        r = Relu(h)
        m = MatMul(r, v)
        y = Conv(m, w2)
    }""",
    "constant minus channels": """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8] c, float[8,3] w2> {
        h = MatMul(x, w1)
        s = Sub(c, h)
        y = MatMul(s, w2)
    }""",
    "chunk by computed halves": """(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[8,3,1,1] w1, float[3,4,1,1] w2,
        int64 one = {1}, int64 two = {2}, int64[1] zero = {0}, int64[1] axis = {1}> {
        c = Conv(x, w1)
        s = Shape(c)
        n = Gather(s, one)
        h = Div(n, two)
        hu = Unsqueeze(h, zero)
        nu = Unsqueeze(n, zero)
        a = Slice(c, zero, hu, axis)
        b = Slice(c, hu, nu, axis)
        m = Mul(a, b)
        y = Conv(m, w2)
    }""",
    "overlapping slices": """(float[N,6] x) => (float[N,2] y) <float[6,8] w1, float[5,2] w2, float[5,2] w3,
        int64[1] i0 = {0}, int64[1] i3 = {3}, int64[1] i5 = {5}, int64[1] i8 = {8}, int64[1] axis = {-1}> {
        h = MatMul(x, w1)
        a = Slice(h, i0, i5, axis)
        b = Slice(h, i3, i8, axis)
        u = MatMul(a, w2)
        v = MatMul(b, w3)
        y = Add(u, v)
    }""",
    "indices that repeat": """(float[N,8] x) => (float[N,3] y)
        <float[8,8] w1, int64[6] i = {0,1,0,7,-1,3}, float[6,3] w2> {
        h = MatMul(x, w1)
        g = Gather<axis=1>(h, i)
        y = MatMul(g, w2)
    }""",
    "tile": """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, int64[2] n = {1, 2}, float[16,3] w2> {
        h = MatMul(x, w1)
        t = Tile(h, n)
        y = MatMul(t, w2)
    }""",
    "expand": """(float[N,6] x) => (float[N,3,6,6] y)
        <float[6,8] w1, int64[4] e = {1,8,6,6}, int64[2] axes = {2,3}, float[3,8,1,1] w2> {
        h = MatMul(x, w1)
        u = Unsqueeze(h, axes)
        s = Expand(u, e)
        y = Conv(s, w2)
    }""",
    "one target for two reshapes": """(float[N,6] x) => (float[N,2] y)
        <float[6,8] w1, float[6,8] w2, float[8,2] w3, float[8,2] w4, int64[3] s = {-1,8,1}, int64[1] axis = {2}> {
        h = MatMul(x, w1)
        k = MatMul(x, w2)
        r = Reshape(h, s)
        q = Reshape(k, s)
        a = Squeeze(r, axis)
        b = Squeeze(q, axis)
        u = MatMul(a, w3)
        v = MatMul(b, w4)
        y = Add(u, v)
    }""",
    "blocks in another order": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[8,4,1,1] w2, float[2,8,1,1] w3, int64[2] sizes = {2, 6}> {
        h = Conv(x, w1)
        a, b = Split<axis=1>(h, sizes)
        c = Concat<axis=1>(b, a)
        g = Conv<group=2>(c, w2)
        y = Conv(g, w3)
    }""",
    "captured weight": """(float[N,6] x, bool up) => (float[N,3] y) <float[6,8] w1, float[8,3] w2> {
        h = MatMul(x, w1)
        k = MatMul(h, w2)
        i = If(up) <then_branch = yes () => (float[3,8] a) { a = Transpose(w2) },
                    else_branch = no () => (float[3,8] b) { n = Neg(w2) b = Transpose(n) }>
        z = ReduceSum(i)
        y = Add(k, z)
    }""",
    "weight that is an output": """(float[N,6] x) => (float[N,3] y, float[8,3] w2) <float[6,8] w1, float[8,3] w2> {
        h = MatMul(x, w1)
        y = MatMul(h, w2)
    }""",
    "group norm spelled out": """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[8,3,1,1] w1, float[4] g_scale,
        float[4] g_shift, float[8,1,1] g, float[8,1,1] b, float[2,8,1,1] w2, int64[3] s = {0, 4, -1}> {
        h = Conv(x, w1)
        r = Reshape(h, s)
        i = InstanceNormalization(r, g_scale, g_shift)
        t = Shape(h)
        u = Reshape(i, t)
        m = Mul(u, g)
        a = Add(m, b)
        y = Conv(a, w2)
    }""",
    "division by a vector": """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8] d_scale, float[8,3] w2> {
        h = Gemm<transB=1>(x, w1)
        d = Div(h, d_scale)
        y = MatMul(d, w2)
    }""",
    "chunks of a computed size": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[10,3,1,1] w1, float[5,5,1,1] w2, float[3,10,1,1] w3, int64 one = {1}, int64[1] zero = {0},
         int64[1] two = {2}, int64[1] axis = {1}> {
        h = Conv(x, w1)
        s = Shape(h)
        c = Gather(s, axis)
        half = Div(c, two)
        full = Mul(half, two)
        a = Slice(h, zero, half, axis)
        b = Slice(h, half, full, axis)
        g = Conv(b, w2)
        j = Concat<axis=1>(a, g)
        y = Conv(j, w3)
    }""",
    # heads of a size divided out of the width, and 1/√d, which stays what it was
    "attention with computed sizes": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,8] w1, float[8,8] w2, float[8,8] w3, float[8,8] w4, int64[1] i0 = {0}, int64[1] i1 = {1},
         int64[1] i2 = {2}, int64[1] heads = {2}, float one = {1}> {
        q0 = MatMul(x, w1)
        k0 = MatMul(x, w2)
        v0 = MatMul(x, w3)
        size = Shape(x)
        n = Gather(size, i0)
        l = Gather(size, i1)
        width = Gather(size, i2)
        d = Div(width, heads)
        split = Concat<axis=0>(n, l, heads, d)
        joined = Concat<axis=0>(n, l, width)
        q1 = Reshape(q0, split)
        k1 = Reshape(k0, split)
        v1 = Reshape(v0, split)
        q = Transpose<perm=[0,2,1,3]>(q1)
        k = Transpose<perm=[0,2,3,1]>(k1)
        v = Transpose<perm=[0,2,1,3]>(v1)
        shape = Shape(q1)
        dk = Slice(shape, i3, i4)
        f = Cast<to=1>(dk)
        root = Sqrt(f)
        r = Div(one, root)
        qs = Mul(q, r)
        a = MatMul(qs, k)
        p = Softmax<axis=-1>(a)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, joined)
        y = MatMul(om, w4)
    }""".replace("int64[1] heads", "int64[1] i3 = {3}, int64[1] i4 = {4}, int64[1] heads"),
    "a mask for each of two speakers": """(float[N,2,12] x) => (float[N,2,12] y)
        <float[8,2,1] w1, float[16,2,1] w2, int64[4] blocks = {-1, 2, 8, 12}, int64[3] flat = {-1, 8, 12},
         int64[3] apart = {-1, 2, 12}, int64[1] one = {1}, float[1,8,1] w3> {
        h = Conv(x, w1)
        m = Conv(x, w2)
        s = Sigmoid(m)
        r = Reshape(s, blocks)
        e = Unsqueeze(h, one)
        z = Mul(e, r)
        f = Reshape(z, flat)
        d = Conv(f, w3)
        y = Reshape(d, apart)
    }""",
    "flattened by a table of indices": """(float[1,3,6,6] x) => (float[1,2,1,1] y)
        <float[8,3,1,1] w1, float[2,8,1,1] w2, int64[1] all = {-1}, int64[1,8,1,1] i = {0,1,2,3,4,5,6,7}> {
        h = Conv(x, w1)
        p = GlobalAveragePool(h)
        f = Reshape(p, all)
        g = Gather(f, i)
        y = Conv(g, w2)
    }""",
    "a norm spread over its channels": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[6,8] w2, float[8,3] w3, int64[3] full = {1, 5, 8}, float low = {0.1}> {
        h = MatMul(x, w1)
        k = MatMul(x, w2)
        s = ReduceMean<axes=[2]>(x)
        c = Clip(s, low)
        e = Expand(c, full)
        d = Div(h, e)
        a = Add(d, k)
        y = MatMul(a, w3)
    }""",
    "fused convolution": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[8,3,1,1] w2, float[8] b2, float[2,8,1,1] w3> {
        h = Conv(x, w1)
        f = com.microsoft.FusedConv<activation="Relu">(x, w2, b2, h)
        y = Conv(f, w3)
    }""",
    "fused activations and products": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[8] b1, float[8,8] w2, float[8,8] w3, float[8,3] w4> {
        h = MatMul(x, w1)
        g = com.microsoft.BiasGelu(h, b1)
        q = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(g, w2)
        f = com.microsoft.FastGelu(q)
        k = MatMul(f, w3)
        s = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(k, f)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, f)
        z = com.microsoft.QuickGelu(o)
        y = MatMul(z, w4)
    }""",
    "fused attention": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,8] w1, float[8,8] w2, float[8,16] w3, float[32] b1, float[16,8] w4> {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        v = MatMul(x, w3)
        a = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, b1)
        y = MatMul(a, w4)
    }""",
    "a class token and positions": """(float[N,4,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[8,3] w2, float[1,1,8] token, float[1,5,8] places,
         int64[1] i0 = {0}, int64[2] rest = {1, 8}> {
        h = MatMul(x, w1)
        size = Shape(x)
        n = Gather(size, i0)
        target = Concat<axis=0>(n, rest)
        c = Expand(token, target)
        j = Concat<axis=1>(c, h)
        a = Add(j, places)
        r = Relu(a)
        y = MatMul(r, w2)
    }""",
    "selections beside the channels": """(float[N,5,6] x, int64[N,2,1] places, int64[1,2] rows, int64[N] lengths)
        => (float[N,2,3] y) <float[6,8] w1, float[8,3] w2, float[8,3] w3, int64[1] two = {2}, int64 one = {1}> {
        h = MatMul(x, w1)
        v, i = TopK<axis=1>(h, two)
        s = CumSum(v, one)
        l = LpNormalization<axis=1>(s)
        g = GatherND<batch_dims=1>(h, places)
        a = Add(l, g)
        k = ReverseSequence<time_axis=1, batch_axis=0>(a, lengths)
        z = ScatterND(k, rows, u)
        y0 = MatMul(z, w2)
        y1 = MatMul(g, w3)
        y = Add(y0, y1)
    }""".replace("        z = ScatterND(k, rows, u)", "        z = Neg(k)").replace(", int64[1,2] rows", ""),
    "places in an image, anchored": """(float[N,3,6,6] x, float[2,4] boxes, int64[2] image) => (float[2,5,2,2] z)
        <float[12,3,1,1] w1, float[12] g, float[12] b, float[12] m, float[12] v = {1,1,1,1,1,1,1,1,1,1,1,1},
         float[5,12,1,1] w2> {
        c = Conv(x, w1)
        n = BatchNormalization(c, g, b, m, v)
        h = Relu(n)
        r = RoiAlign<output_height=2, output_width=2>(h, boxes, image)
        z = Conv(r, w2) }""",
    "places in an image": """(float[N,3,6,6] x, float[2,4] boxes, int64[2] image, float[N,4,4,2] grid)
        => (float[2,2,2,2] y, float[N,2,4,4] z) <float[8,3,1,1] w1, float[2,8,1,1] w2, float[2,8,1,1] w3> {
        h = Conv(x, w1)
        r = RoiAlign<output_height=2, output_width=2>(h, boxes, image)
        y = Conv(r, w2)
        g = GridSample(h, grid)
        z = Conv(g, w3)
    }""",
    "rotary attention, tables in the file": """(float[N,5,6] x) => (float[N,2,5,6] y)
        <float[6,16] w1, float[6,16] w2, float[6,8] w3, float[8,6] w4, float[1,1,5,8] cos, float[1,1,5,8] sin,
         int64[4] heads = {0, 0, 2, 8}, int64[1] one = {1}> {
        q0 = MatMul(x, w1)
        k0 = MatMul(x, w2)
        """
    + _TURNED,
    "rotary attention, neighbours turn": """(float[N,5,6] x) => (float[N,2,5,6] y)
        <float[6,16] w1, float[6,16] w2, float[6,8] w3, float[8,6] w4, float[1,1,5,8] cos, float[1,1,5,8] sin,
         int64[4] heads = {0, 0, 2, 8}, int64[4] flat = {0, 0, 0, 8}, int64[1] zero = {0}, int64[1] one = {1},
         int64[1] two = {2}, int64[1] last = {3}, int64[1] fourth = {4}, int64[1] far = {9223372036854775807}> {
        q0 = MatMul(x, w1)
        k0 = MatMul(x, w2)
        """
    + _NEIGHBOURS,
    "rotary attention, angles computed": """(float[N,5,6] x) => (float[N,2,5,6] y)
        <float[6,16] w1, float[6,16] w2, float[6,8] w3, float[8,6] w4, float[4] f_scale,
         int64 zero = {0}, int64 i1 = {1}, int64[4] heads = {0, 0, 2, 8}, int64[1] one = {1}, int64[1] last = {-1}> {
        size = Shape(x)
        long = Gather(size, i1)
        r = Range(zero, long, i1)
        rf = Cast<to=1>(r)
        places = Unsqueeze(rf, last)
        angles = Mul(places, f_scale)
        both = Concat<axis=-1>(angles, angles)
        cos = Cos(both)
        sin = Sin(both)
        q0 = MatMul(x, w1)
        k0 = MatMul(x, w2)
        """
    + _TURNED,
    # as an exporter writes repeat_kv: every size of the target through Equal and Where
    "a target picked by Where": """(float[N,5,6] x) => (float[N,5,2,3] y)
        <float[6,8] w1, float[8,3] w2, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] two = {2}, int64[1] eight = {8},
         int64[4] none = {-1,-1,-1,-1}, int64[4] ones = {1,1,1,1}> {
        h = MatMul(x, w1)
        u = Unsqueeze(h, two)
        size = Shape(h)
        n = Gather(size, i0)
        l = Gather(size, i1)
        target = Concat<axis=0>(n, l, two, eight)
        open = Equal(target, none)
        shape = Where(open, ones, target)
        e = Expand(u, shape)
        y = MatMul(e, w2)
    }""",
    # attention that stays as it is, beside a gated perceptron that does not
    "attention in groups of queries": """(float[2,5,32] x) => (float[2,5,32] y)
        <float[32,32] w1, float[32,16] w2, float[32,16] w3, float[32,32] w4,
         float[32,24] w5, float[32,24] w6, float[24,32] w7,
         int32[2] ends = {4, 4}, int32 total = {5}, float[8,8] cos, float[8,8] sin> {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        v = MatMul(x, w3)
        a, keys, values = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=1, do_rotary=1>(
            q, k, v, , , ends, total, cos, sin)
        o = MatMul(a, w4)
        """
    + _PERCEPTRON,
    "fused rotary embedding": """(float[2,5,32] x, int64[2,5] places) => (float[2,5,32] y)
        <float[32,32] w1, float[32,32] w2, float[32,32] w3, float[32,32] w4,
         float[32,24] w5, float[32,24] w6, float[24,32] w7,
         float[8,8] cos, float[8,8] sin> {
        q0 = MatMul(x, w1)
        k0 = MatMul(x, w2)
        v = MatMul(x, w3)
        q = com.microsoft.RotaryEmbedding<num_heads=2>(q0, places, cos, sin)
        k = com.microsoft.RotaryEmbedding<num_heads=2>(k0, places, cos, sin)
        a = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)
        o = MatMul(a, w4)
        """
    + _PERCEPTRON,
    "fused products whose batch comes second": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[6,8] w2, float[6,16] w3, float[16,3] w4,
         int64[4] heads = {0,0,4,-1}, int64[3] joined = {0,0,-1}> {
        q0 = MatMul(x, w1)
        q1 = Reshape(q0, heads)
        q = Transpose<perm=[1,0,2,3]>(q1)
        k0 = MatMul(x, w2)
        k1 = Reshape(k0, heads)
        k = Transpose<perm=[1,0,2,3]>(k1)
        v0 = MatMul(x, w3)
        v1 = Reshape(v0, heads)
        v = Transpose<perm=[1,0,2,3]>(v1)
        s = com.microsoft.FusedMatMul<alpha=0.5, transBatchA=1, transBatchB=1, transB=1>(q, k)
        p = Softmax<axis=-1>(s)
        o = com.microsoft.FusedMatMul<transBatchB=1>(p, v)
        t = Transpose<perm=[0,2,1,3]>(o)
        j = Reshape(t, joined)
        y = MatMul(j, w4)
    }""",
    "fused product of what is turned": """(float[N,6,5] x) => (float[N,5,3] y)
        <float[8,6] w1, float[8,8] w2, float[8,3] w3> {
        h = MatMul(w1, x)
        r = Relu(h)
        k = com.microsoft.FusedMatMul<transA=1, transB=1, alpha=0.5>(r, w2)
        y = MatMul(k, w3)
    }""",
    "a size behind fused nodes": """(float[N,L,6] x) => (float[N,L,3] y)
        <float[6,8] w1, float[8] b1, float[6,8] w2, float[8,3] w3, float[8,3] w4, int64[3] each = {1,1,1}> {
        h = MatMul(x, w1)
        g = com.microsoft.BiasGelu(h, b1)
        k = MatMul(x, w2)
        p = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(g, k)
        o = com.microsoft.FusedMatMul<alpha=0.5>(p, k)
        size = Shape(o)
        n, l, channels = Split(size, each)
        d = Cast<to=1>(channels)
        s = Sqrt(d)
        q = Div(o, s)
        z = MatMul(q, w3)
        u = MatMul(g, w4)
        y = Add(z, u)
    }""",
    "sizes that are split": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[6,8] w2, float[8,3] w3, int64[3] order = {0,2,1}, int64[3] each = {1,1,1}> {
        a = MatMul(x, w1)
        b = MatMul(x, w2)
        size = Shape(a)
        turned = Gather(size, order)
        n, channels, l = Split(turned, each)
        again = Concat<axis=0>(n, l, channels)
        c = Reshape(b, again)
        d = Mul(a, c)
        y = MatMul(d, w3)
    }""",
    "weights normalized in the graph": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[1,8,27] w1, float[8] n_scale, float[8] n_shift, float[8] n_mean, float[8] n_var, float[10,8,1,1] w2,
         int64[4] s = {8,3,3,3}, int64[2] each = {2,8}> {
        n, mean, var = BatchNormalization<training_mode=1, momentum=1.0>(w1, n_scale, n_shift, n_mean, n_var)
        w = Reshape(n, s)
        c = Conv<pads=[1,1,1,1]>(x, w)
        r = Relu(c)
        last, first = Split<axis=0>(w2, each)
        k = Conv(r, first)
        y = Conv(k, last)
    }""",
    "selective kernels": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,3,3] w1, float[8,3,1,1] w2, float[4,8,1,1] w3, float[16,4,1,1] w4, float[2,8,1,1] w5,
         int64[5] s = {0,2,8,1,1}, int64[1] a = {1}> {
        c = Conv<pads=[1,1,1,1]>(x, w1)
        d = Conv(x, w2)
        c1 = Unsqueeze(c, a)
        d1 = Unsqueeze(d, a)
        both = Concat<axis=1>(c1, d1)
        sum = ReduceSum<keepdims=0>(both, a)
        pooled = GlobalAveragePool(sum)
        few = Conv(pooled, w3)
        few1 = Relu(few)
        many = Conv(few1, w4)
        each = Reshape(many, s)
        chosen = Softmax<axis=1>(each)
        m = Mul(both, chosen)
        z = ReduceSum<keepdims=0>(m, a)
        y = Conv(z, w5)
    }""",
    "outer product": """(float[N,6] x) => (float[N,2] y)
        <float[6,4] w1, float[6,5] w2, float[20,2] w3, int64[1] a1 = {2}, int64[1] a2 = {1}, int64[2] f = {-1,20}> {
        h = MatMul(x, w1)
        k = MatMul(x, w2)
        p = Unsqueeze(h, a1)
        q = Unsqueeze(k, a2)
        m = Mul(p, q)
        r = Reshape(m, f)
        y = MatMul(r, w3)
    }""",
    "states of channels": """(float[N,6] x) => (float[N,3] y)
        <float[6,8] w1, float[8,4] w2, float[8,4] w3, float[8,4] decay, float[8,3] w4,
         int64[1] last = {2}, int64[1] first = {1}> {
        h = MatMul(x, w1)
        into = MatMul(h, w2)
        out = MatMul(h, w3)
        h1 = Unsqueeze(h, last)
        into1 = Unsqueeze(into, first)
        written = Mul(h1, into1)
        state = Mul(written, decay)
        out1 = Unsqueeze(out, last)
        read = MatMul(state, out1)
        s = Squeeze(read, last)
        g = Mul(s, h)
        y = MatMul(g, w4)
    }""",
    "attention over channels": """(float[N,3,4,5] x) => (float[N,2,4,5] y)
        <float[24,3,1,1] w1, float[2,8,1,1] w2, int64[3] s = {0,8,20}, int64[4] t = {0,8,4,5}> {
        c = Conv(x, w1)
        q0, k0, v0 = Split<axis=1>(c)
        q = Reshape(q0, s)
        k = Reshape(k0, s)
        v = Reshape(v0, s)
        kt = Transpose<perm=[0,2,1]>(k)
        a = MatMul(q, kt)
        p = Softmax<axis=-1>(a)
        o = MatMul(p, v)
        r = Reshape(o, t)
        y = Conv(r, w2)
    }""",
    "linear attention": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[6,8] w2, float[6,8] w3, float[8,3] w4> {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        v = MatMul(x, w3)
        kt = Transpose<perm=[0,2,1]>(k)
        m = MatMul(kt, v)
        o = MatMul(q, m)
        y = MatMul(o, w4)
    }""",
    "fused perceptron": """(float[N,6] x) => (float[N,3] y)
        <float[8,6] w1, float[8] b1, float[8,10] w2, float[10] b2, float[10,3] w3> {
        h = com.microsoft.FusedGemm<transB=1, activation="Relu">(x, w1, b1)
        k = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.1, alpha=0.5>(h, w2, b2)
        y = Gemm(k, w3)
    }""",
    "attention with its projection": """(float[2,5,32] x) => (float[2,5,32] y)
        <float[32,48] w0, float[48,96] w1, float[96] b1, float[32,32] w4> {
        h = MatMul(x, w0)
        a = com.microsoft.Attention<num_heads=2, unidirectional=1>(h, w1, b1)
        y = MatMul(a, w4)
    }""",
    "attention with its projection, and keys of earlier calls": """(float[2,5,32] x, float[2,2,2,N,16] past)
        => (float[2,5,32] y, float[2,2,2,M,16] present)
        <float[32,96] w1, float[96] b1, float[32,32] w4, float[32,24] w5, float[32,24] w6, float[24,32] w7> {
        a, present = com.microsoft.Attention<num_heads=2, unidirectional=1>(x, w1, b1, , past)
        o = MatMul(a, w4)
        """
    + _PERCEPTRON,
}
"""Graphs that have something to lose."""

SAFE = {
    "one channel, picked by a scalar": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, int64 i = {2}, int64[1] axis = {1}, float[3,1,1,1] w2, float[3,8,1,1] w3> {
        c = Conv<pads=[1,1,1,1]>(x, w1)
        g = Gather<axis=1>(c, i)
        u = Unsqueeze(g, axis)
        a = Conv(u, w2)
        b = Conv(c, w3)
        y = Add(a, b)
    }""",
    "a matrix of indices": """(float[N,8] x) => (float[N,3] y)
        <float[8,8] w1, int64[2,4] i = {0,1,2,3,4,5,6,7}, float[4,3] w2, int64[1] axis = {1}> {
        h = MatMul(x, w1)
        g = Gather<axis=1>(h, i)
        k = MatMul(g, w2)
        y = ReduceSum<keepdims=0>(k, axis)
    }""",
    # the first four channels are the weakest
    "a part that would lose all its channels": """(float[N,1,4,4] x) => (float[N,1,4,4] y)
        <float[8,1,1,1] w1 = {1,1,1,1,9,9,9,9}, float[1,8,1,1] w2,
         int64[1] i0 = {0}, int64[1] i4 = {4}, int64[1] i8 = {8}, int64[1] axis = {1}> {
        c = Conv(x, w1)
        a = Slice(c, i0, i4, axis)
        p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)
        b = Slice(c, i4, i8, axis)
        j = Concat<axis=1>(p, b)
        y = Conv(j, w2)
    }""",
    # the last two are the weakest: once they are gone, −2 must not become −0
    "the last two channels would go": """(float[N,1,4,4] x) => (float[N,1,4,4] y)
        <float[4,1,1,1] w1 = {9,9,1,1}, float[1,4,1,1] w2,
         int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] last = {-2}, int64[1] end = {100}, int64[1] axis = {1}> {
        c = Conv(x, w1)
        a = Slice(c, last, end, axis)
        b = Slice(c, i0, i2, axis)
        j = Concat<axis=1>(a, b)
        y = Conv(j, w2)
    }""",
    "groups with one output each": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[4,2,1,1] w2, float[2,4,1,1] w3> {
        h = Conv(x, w1)
        g = Conv<group=4>(h, w2)
        y = Conv(g, w3)
    }""",
    "transposed groups with one input each": """(float[N,3,6,6] x) => (float[N,2,12,12] y)
        <float[8,3,1,1] w1, float[8,2,2,2] w2, float[16] b2, float[2,16,1,1] w3> {
        h = Conv(x, w1)
        t = ConvTranspose<group=8, strides=[2,2]>(h, w2, b2)
        y = Conv(t, w3)
    }""",
    "channels cut by a negative pad": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, int64[8] p = {0,-1,0,0,0,-1,0,0}, float[2,6,1,1] w2> {
        h = Conv(x, w1)
        r = Pad(h, p)
        y = Conv(r, w2)
    }""",
    "a shape that is an output": """(float[N,6] x) => (float[N,2] y, int64[2] s) <float[6,8] w1, float[8,2] w2> {
        h = MatMul(x, w1)
        s = Shape(h)
        y = MatMul(h, w2)
    }""",
    "a channel count that is an output": """(float[N,6] x) => (float[N,2] y, float n)
        <float[6,8] w1, float[8,2] w2, int64 one = {1}> {
        h = MatMul(x, w1)
        s = Shape(h)
        g = Gather(s, one)
        n = Cast<to=1>(g)
        y = MatMul(h, w2)
    }""",
    "a shape that enters a branch": """(float[N,6] x, bool up) => (float[N,2] y, float z)
        <float[6,8] w1, float[8,2] w2> {
        h = MatMul(x, w1)
        s = Shape(h)
        z = If(up) <then_branch = yes () => (float a) { f = Cast<to=1>(s) a = ReduceSum<keepdims=0>(f) },
                    else_branch = no () => (float b) { g = Cast<to=1>(s) b = ReduceProd<keepdims=0>(g) }>
        y = MatMul(h, w2)
    }""",
    "positions numbered along the channels": """(float[N,6] x) => (float[N,2] y)
        <float[6,8] w1, float[8,2] w2, int64 one = {1}, int64 zero = {0}> {
        h = MatMul(x, w1)
        s = Shape(h)
        n = Gather(s, one)
        r = Range(zero, n, one)
        f = Cast<to=1>(r)
        a = Add(h, f)
        y = MatMul(a, w2)
    }""",
    "steps over channels": """(float[N,6] x) => (float[N,3] y)
        <float[6,8] w1, float[6,8] w2, float[3,3] w3, float[8,3] w4, int64[1] zero = {0}, int64[1] three = {3},
         int64[1] one = {1}, int64[1] last = {-1}, int64[1] before = {-9}, int64[1] back = {-1}> {
        h = MatMul(x, w1)
        thirds = Slice(h, zero, back, one, three)
        a = MatMul(thirds, w3)
        k = MatMul(x, w2)
        turned = Slice(k, last, before, one, back)
        b = MatMul(turned, w4)
        y = Add(a, b)
    }""",
    "channels picked and written by value": """(float[N,8] x, int64[N,3] i)
        => (float[N,3] y, float[N,2] z, float[N,4] v)
        <float[8,8] w1, float[8,8] w2, float[3,3] w3, float[8,2] w4, float[8,4] w5,
         int64[1] three = {3}, int64 one = {1}> {
        h = MatMul(x, w1)
        g = GatherElements<axis=1>(h, i)
        y = MatMul(g, w3)
        k = MatMul(x, w2)
        t, j = TopK(k, three)
        s = ScatterElements<axis=1>(k, i, t)
        z = MatMul(s, w4)
        c = CumSum(k, one)
        v = MatMul(c, w5)
    }""",
}
"""Graphs that may be left alone."""

FUSED_NORM = """(float[N,5,6] x) => (float[N,5,3] y)
    <float[6,8] w1, float[6,8] w2, float[8] a_scale, float[8] a_shift, float[8,8] w3, float[8,3] w4> {
    h = MatMul(x, w1)
    k = MatMul(x, w2)
    n = com.microsoft.SkipLayerNormalization(h, k, a_scale, a_shift)
    m = MatMul(n, w3)
    y = MatMul(m, w4)
}"""
"""A norm fused with the sum before it, which keeps its channels."""

NORMS = {
    "layer norms on a residual stream": """(int64[N,5] tokens) => (float[N,5,3] y)
        <float[10,8] table, float[8] a_scale, float[8] a_shift, float[8,12] w1, float[12] b1, float[12,8] w2,
         float[8] c_scale, float[8,3] w3> {
        e = Gather(table, tokens)
        n = LayerNormalization(e, a_scale, a_shift)
        h = MatMul(n, w1)
        b = Add(h, b1)
        r = Relu(b)
        k = MatMul(r, w2)
        s = Add(e, k)
        m = LayerNormalization<epsilon=0.1>(s, c_scale)
        y = MatMul(m, w3)
    }""",
    "layer and RMS norm spelled out": """(float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, float[8] a_scale, float[8] a_shift, float[8,8] w2, float[8] c_scale, float[8,3] w3,
         float e = {0.001}, float two = {2}> {
        h = MatMul(x, w1)
        m = ReduceMean<axes=[-1]>(h)
        d = Sub(h, m)
        q = Mul(d, d)
        v = ReduceMean<axes=[-1]>(q)
        ve = Add(v, e)
        s = Sqrt(ve)
        n = Div(d, s)
        g = Mul(n, a_scale)
        b = Add(g, a_shift)
        k = MatMul(b, w2)
        p = Pow(k, two)
        o = ReduceMean<axes=[2]>(p)
        oe = Add(o, e)
        os = Sqrt(oe)
        z = Div(k, os)
        c = Mul(z, c_scale)
        y = MatMul(c, w3)
    }""",
    "group norm spelled out": """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[8,3,1,1] w1, float[2] g_scale,
        float[2] g_shift, float[8,1,1] g, float[2,8,1,1] w2, int64[3] s = {0, 2, -1}> {
        h = Conv(x, w1)
        r = Reshape(h, s)
        i = InstanceNormalization(r, g_scale, g_shift)
        t = Shape(h)
        u = Reshape(i, t)
        m = Mul(u, g)
        y = Conv(m, w2)
    }""",
    "one norm over all channels": """(float[N,3,12] x) => (float[N,2,12] y) <float[8,3,1] w1, float[1] g_scale,
        float[1] g_shift, float[8,1] g, float[2,8,1] w2, int64[3] s = {0, 1, -1}> {
        h = Conv(x, w1)
        r = Reshape(h, s)
        i = InstanceNormalization(r, g_scale, g_shift)
        t = Shape(h)
        u = Reshape(i, t)
        m = Mul(u, g)
        y = Conv(m, w2)
    }""",
    "cosine attention": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,24] w1, float[8,8] w2, int64[5] heads = {0, 5, 3, 2, 4}, int64[3] merged = {0, 5, 8},
         int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, float scale = {3}> {
        h = MatMul(x, w1)
        qkv = Reshape(h, heads)
        t = Transpose<perm=[2,0,3,1,4]>(qkv)
        q = Gather<axis=0>(t, i0)
        k = Gather<axis=0>(t, i1)
        v = Gather<axis=0>(t, i2)
        ql = ReduceL2<axes=[-1]>(q)
        qn = Div(q, ql)
        kl = ReduceL2<axes=[-1]>(k)
        kn = Div(k, kl)
        kt = Transpose<perm=[0,1,3,2]>(kn)
        qk = MatMul(qn, kt)
        s = Mul(qk, scale)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, merged)
        y = MatMul(om, w2)
    }""",
}
"""Graphs whose channels a norm runs over: they stay, unless that is permitted."""

HEADS = {
    "fused heads": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,8] w1, float[8,8] w2, float[8,8] w3, float[24] b1, float[8,8] w4> {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        v = MatMul(x, w3)
        a = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b1)
        y = MatMul(a, w4)
    }""",
    "projected heads": """(float[N,5,8] x, int32[N,5] mask) => (float[N,5,8] y)
        <float[8,40] w1, float[40] b1, float[24,8] w4> {
        a = com.microsoft.Attention<num_heads=4, qkv_hidden_sizes=[8,8,24]>(x, w1, b1, mask)
        y = MatMul(a, w4)
    }""",
    "heads with a bias each": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,24] w1, float[24] b1, float[8,8] w2, float[1,4,5,5] relative, float scale = {0.5},
         int64[5] heads = {0, 5, 3, 4, 2}, int64[3] merged = {0, 5, 8},
         int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}> {
        h = MatMul(x, w1)
        a = Add(h, b1)
        qkv = Reshape(a, heads)
        t = Transpose<perm=[2,0,3,1,4]>(qkv)
        q = Gather<axis=0>(t, i0)
        k = Gather<axis=0>(t, i1)
        v = Gather<axis=0>(t, i2)
        kt = Transpose<perm=[0,1,3,2]>(k)
        qk = MatMul(q, kt)
        s = Mul(qk, scale)
        r = Add(s, relative)
        p = Softmax<axis=-1>(r)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, merged)
        y = MatMul(om, w2)
    }""",
    "normalized heads": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,32] w1, float[8,32] w2, float[8,32] w3, float[8] q_scale, float[8] q_shift, float[8] k_scale,
         float[32,8] w4, int64[4] heads = {0, 5, 4, 8}, int64[3] merged = {0, 5, 32}> {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        v = MatMul(x, w3)
        qh = Reshape(q, heads)
        kh = Reshape(k, heads)
        vh = Reshape(v, heads)
        qn = LayerNormalization(qh, q_scale, q_shift)
        kl = LpNormalization(kh)
        kn = Mul(kl, k_scale)
        qt = Transpose<perm=[0,2,1,3]>(qn)
        kt = Transpose<perm=[0,2,3,1]>(kn)
        vt = Transpose<perm=[0,2,1,3]>(vh)
        a = MatMul(qt, kt)
        p = Softmax<axis=-1>(a)
        o = MatMul(p, vt)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, merged)
        y = MatMul(om, w4)
    }""",
}
"""Attention whose heads may go as a whole."""

RECURRENT = """(float[N,7,6] x) => (float[7,{d},N,5] y)
    <float[6,16] w1, float[16] b1, float[{d},{rows},16] w, float[{d},{rows},5] r, float[{d},{both}] b> {{
    m = MatMul(x, w1)
    h = Add(m, b1)
    s = Transpose<perm=[1,0,2]>(h)
    y = {op}<hidden_size = 5, direction = "{direction}">(s, w, r, b)
}}"""
"""A recurrent operator behind 16 channels: d directions, `rows` and `both` rows of its weights and its bias."""
