"""Small models, as in texts.py, on which it is easy to go wrong."""

from __future__ import annotations

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
}
"""Graphs that may be left alone."""
