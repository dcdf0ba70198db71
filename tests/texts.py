"""Small models as text: `graphs.build(name)` gives what is declared in <…> without a value random numbers.

Weights end in w and a digit, BatchNormalization's vectors in _scale, _shift, _mean and _var. Every node is named
after its first output.
"""

from __future__ import annotations

_NORM = "float[{n}] {p}_scale, float[{n}] {p}_shift, float[{n}] {p}_mean, float[{n}] {p}_var"


def _norms(**sizes: int) -> str:
    """Declarations of the vectors of several BatchNormalizations."""
    return ", ".join(_NORM.format(p=p, n=n) for p, n in sizes.items())


def _bn(value: str, p: str) -> str:
    """Arguments of a BatchNormalization."""
    return f"({value}, {p}_scale, {p}_shift, {p}_mean, {p}_var)"


DENSE = {
    "mlp": """(float[N,6] x) => (float[N,3] y)
        <float[8,6] w1, float[8] b1, float[8,10] w2, float[10] b2, float[3,10] w3, float[3] b3> {
        h1 = Gemm<transB=1>(x, w1, b1)
        r1 = Relu(h1)
        h2 = Gemm(r1, w2, b2)
        r2 = Tanh(h2)
        y = Gemm<transB=1>(r2, w3, b3)
    }""",
    "matmul_add": """(float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w1, float[8] b1, float[8,4] w2> {
        h = MatMul(x, w1)
        a = Add(b1, h)
        r = Sigmoid(a)
        y = MatMul(r, w2)
    }""",
    "embedding": """(int64[N,4] tokens) => (float[N,4,3] y) <float[10,8] table, float[8,6] w1, float[6,3] w2> {
        e = Gather(table, tokens)
        h = MatMul(e, w1)
        r = Relu(h)
        y = MatMul(r, w2)
    }""",
    "constant_nodes": """(float[N,4] x) => (float[N,2] y) {
        w1 = Constant<value = float[4,6] {0.9,-0.2,0.3,0.4,0.5,-0.6, 0.7,0.8,-0.9,0.1,0.2,0.3,
            -0.4,0.5,0.6,-0.7,0.8,0.9, 0.1,0.2,0.3,0.4,-0.5,-0.6}>()
        b1 = Constant<value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]>()
        w2 = Constant<value = float[6,2] {0.5,-0.1, 0.4,0.2, 0.3,-0.3, 0.2,0.4, -0.1,0.5, 0.6,0.6}>()
        h = MatMul(x, w1)
        a = Add(h, b1)
        r = Relu(a)
        y = MatMul(r, w2)
    }""",
    "shared_weight": """(float[N,8] x) => (float[N,3] y) <float[8,8] w1, float[8,8] w2, float[8,3] w3> {
        h0 = MatMul(x, w1)
        r0 = Tanh(h0)
        h1 = MatMul(r0, w2)
        r1 = Tanh(h1)
        h2 = MatMul(r1, w2)
        r2 = Tanh(h2)
        y = MatMul(r2, w3)
    }""",
    "attention_fused": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,24] w1, float[24] b1, float[8,8] w2, float[8] b2, float scale = {0.5},
         int64[5] heads = {0, 5, 3, 2, 4}, int64[3] merged = {0, 5, 8}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}>
    {
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
        p = Softmax<axis=-1>(s)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, merged)
        z = MatMul(om, w2)
        y = Add(z, b2)
    }""",
    "attention_separate": """(float[N,5,8] x) => (float[N,5,8] y)
        <float[8,8] w1, float[8] b1, float[8,8] w2, float[8] b2, float[8,8] w3, float[8] b3, float[8,8] w4,
         int64[4] heads = {0, 5, 2, 4}, int64[3] merged = {0, 5, 8}> {
        q0 = MatMul(x, w1)
        q1 = Add(q0, b1)
        q2 = Reshape(q1, heads)
        q = Transpose<perm=[0,2,1,3]>(q2)
        k0 = MatMul(x, w2)
        k1 = Add(k0, b2)
        k2 = Reshape(k1, heads)
        k = Transpose<perm=[0,2,3,1]>(k2)
        v0 = MatMul(x, w3)
        v1 = Add(v0, b3)
        v2 = Reshape(v1, heads)
        v = Transpose<perm=[0,2,1,3]>(v2)
        s = MatMul(q, k)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        om = Reshape(ot, merged)
        y = MatMul(om, w4)
    }""",
    "unknown_operator": """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8,8] w2, float[8] b2, float[8,3] w3> {
        h = MatMul(x, w1)
        r = Relu(h)
        k = MatMul(r, w2)
        u = com.microsoft.Trilu(k)
        g = Add(u, b2)
        y = MatMul(g, w3)
    }""",
    "branches": """(float[N,6] x, bool up) => (float[N,4] y) <float[6,8] w1, float[8,8] w2, float[8,4] w3> {
        h = MatMul(x, w1)
        r = Relu(h)
        c = MatMul(r, w2)
        i = If (up) <then_branch = yes () => (float[N,8] a) { a = Relu(c) },
                     else_branch = no () => (float[N,8] b) { b = Neg(c) }>
        y = MatMul(i, w3)
    }""",
}
"""Graphs of matrix products."""

CONVOLUTIONAL = {
    "conv_bn": f"""(float[N,3,8,8] x) => (float[N,5] y)
        <float[8,3,3,3] w1, {_norms(n1=8, n2=6)}, float[6,8,3,3] w2, float[6] b2, float[5,6] w3, float[5] b3> {{
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        e1 = BatchNormalization{_bn("c1", "n1")}
        r1 = Relu(e1)
        p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2)
        e2 = BatchNormalization<epsilon=0.001>{_bn("c2", "n2")}
        r2 = Relu(e2)
        p2 = GlobalAveragePool(r2)
        f = Flatten(p2)
        y = Gemm<transB=1>(f, w3, b3)
    }}""",
    "residual": f"""(float[N,3,8,8] x) => (float[N,4] y)
        <float[8,3,3,3] w1, float[6,8,3,3] w2, float[8,6,3,3] w3, float[12,8,3,3] w4, float[12,8,1,1] w5,
         {_norms(n1=8, n3=8, n4=12)}, float[12] b5, float[4,12] w6> {{
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        e1 = BatchNormalization{_bn("c1", "n1")}
        r1 = Relu(e1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2)
        r2 = Relu(c2)
        c3 = Conv<pads=[1,1,1,1]>(r2, w3)
        e3 = BatchNormalization{_bn("c3", "n3")}
        a1 = Add(e3, r1)
        r3 = Relu(a1)
        c4 = Conv<pads=[1,1,1,1], strides=[2,2]>(r3, w4)
        e4 = BatchNormalization{_bn("c4", "n4")}
        c5 = Conv<strides=[2,2]>(r3, w5, b5)
        a2 = Add(e4, c5)
        r4 = Relu(a2)
        p = GlobalAveragePool(r4)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w6)
    }}""",
    "dense_block": """(float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,3,3] w1, float[4,8,3,3] w2, float[4,12,3,3] w3, float[2,16,1,1] w4, float[4] b2> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
        r2 = Relu(c2)
        j1 = Concat<axis=1>(r1, r2)
        c3 = Conv<pads=[1,1,1,1]>(j1, w3)
        r3 = Relu(c3)
        j2 = Concat<axis=1>(r1, r2, r3)
        y = Conv(j2, w4)
    }""",
    "depthwise": f"""(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[8,1,3,3] w2, {_norms(n2=8)}, float[4,8,1,1] w3> {{
        c1 = Conv(x, w1)
        r1 = Relu(c1)
        c2 = Conv<group=8, pads=[1,1,1,1]>(r1, w2)
        e2 = BatchNormalization{_bn("c2", "n2")}
        r2 = Clip(e2)
        y = Conv(r2, w3)
    }}""",
    "depthwise_twice": """(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[16,1,3,3] w2, float[16] b2, float[4,16,1,1] w3> {
        c1 = Conv(x, w1)
        r1 = Relu(c1)
        c2 = Conv<group=8, pads=[1,1,1,1]>(r1, w2, b2)
        y = Conv(c2, w3)
    }""",
    "grouped": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, float[12,4,3,3] w2, float[12] b2, float[3,12,1,1] w3> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<group=2, pads=[1,1,1,1]>(r1, w2, b2)
        r2 = Relu(c2)
        y = Conv(r2, w3)
    }""",
    "conv_transpose": f"""(float[N,3,4,4] x) => (float[N,2,16,16] y)
        <float[8,3,3,3] w1, float[8,6,4,4] w2, {_norms(n2=6)}, float[6,4,4,4] w3, float[8] b3, float[2,8,1,1] w4> {{
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(r1, w2)
        e2 = BatchNormalization{_bn("c2", "n2")}
        r2 = Relu(e2)
        c3 = ConvTranspose<group=2, strides=[2,2], pads=[1,1,1,1]>(r2, w3, b3)
        y = Conv(c3, w4)
    }}""",
    "squeeze_excite": """(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,3,3] w1, float[4,8,1,1] w2, float[4] b2, float[8,4,1,1] w3, float[8] b3, float[4,8,1,1] w4> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        s0 = ReduceMean<axes=[2,3]>(c1)
        s1 = Conv(s0, w2, b2)
        s2 = Relu(s1)
        s3 = Conv(s2, w3, b3)
        s4 = HardSigmoid(s3)
        m = Mul(c1, s4)
        y = Conv(m, w4)
    }""",
    "split": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[12,3,1,1] w1, float[6,6,3,3] w2, float[3,12,1,1] w3, int64[2] sizes = {6, 6}> {
        c1 = Conv(x, w1)
        a, b = Split<axis=1>(c1, sizes)
        c2 = Conv<pads=[1,1,1,1]>(b, w2)
        j = Concat<axis=1>(a, c2)
        y = Conv(j, w3)
    }""",
    "split_unsized": """(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[12,3,1,1] w1, float[3,6,1,1] w2> {
        c1 = Conv(x, w1)
        a, b = Split<axis=1>(c1)
        s = Sigmoid(b)
        m = Mul(a, s)
        y = Conv(m, w2)
    }""",
    "slice": """(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[12,3,1,1] w1, float[3,12,1,1] w2,
         int64[1] zero = {0}, int64[1] cut = {4}, int64[1] end = {9223372036854775807}, int64[1] axis = {1}> {
        c1 = Conv(x, w1)
        a = Slice(c1, zero, cut, axis)
        b = Slice(c1, cut, end, axis)
        r = Relu(b)
        j = Concat<axis=1>(r, a)
        y = Conv(j, w2)
    }""",
    "gather": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,1,1] w1, float[3,8,1,1] w2, int64[8] order = {3, 1, 2, 0, -1, 5, 6, 4}> {
        c1 = Conv(x, w1)
        g = Gather<axis=1>(c1, order)
        r = Relu(g)
        y = Conv(r, w2)
    }""",
    "channel_shuffle": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,1,1] w1, float[8,4,1,1] w2, float[8,4,3,3] w3, float[3,8,1,1] w4,
         int64[5] blocks = {0, 2, 4, 6, 6}, int64[4] flat = {0, -1, 6, 6}> {
        c1 = Conv(x, w1)
        c2 = Conv<group=2>(c1, w2)
        s0 = Reshape(c2, blocks)
        s1 = Transpose<perm=[0,2,1,3,4]>(s0)
        s2 = Reshape(s1, flat)
        c3 = Conv<group=2, pads=[1,1,1,1]>(s2, w3)
        r3 = Relu(c3)
        y = Conv(r3, w4)
    }""",
    "shuffle_units": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[12,3,1,1] w1, float[6,6,3,3] w2, float[6,6,3,3] w3, float[3,12,1,1] w4,
         int64[5] blocks = {0, 2, 6, 6, 6}, int64[4] flat = {0, 12, 6, 6}, int64[2] sizes = {6, 6}> {
        c1 = Conv(x, w1)
        a1, b1 = Split<axis=1>(c1, sizes)
        c2 = Conv<pads=[1,1,1,1]>(b1, w2)
        r2 = Relu(c2)
        j1 = Concat<axis=1>(a1, r2)
        s0 = Reshape(j1, blocks)
        s1 = Transpose<perm=[0,2,1,3,4]>(s0)
        s2 = Reshape(s1, flat)
        a2, b2 = Split<axis=1>(s2, sizes)
        c3 = Conv<pads=[1,1,1,1]>(b2, w3)
        r3 = Relu(c3)
        j2 = Concat<axis=1>(a2, r3)
        y = Conv(j2, w4)
    }""",
    "depth_to_space_dcr": """(float[N,3,4,4] x) => (float[N,2,8,8] y) <float[16,3,3,3] w1, float[2,4,1,1] w2> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        d = DepthToSpace<blocksize=2, mode="DCR">(c1)
        r = Relu(d)
        y = Conv(r, w2)
    }""",
    "depth_to_space_crd": """(float[N,3,4,4] x) => (float[N,2,8,8] y) <float[16,3,3,3] w1, float[2,4,1,1] w2> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        d = DepthToSpace<blocksize=2, mode="CRD">(c1)
        r = Relu(d)
        y = Conv(r, w2)
    }""",
    "pixel_shuffle": """(float[N,3,4,4] x) => (float[N,2,8,8] y) <float[16,3,3,3] w1, float[2,4,1,1] w2,
         int64[6] blocks = {-1, 4, 2, 2, 4, 4}, int64[4] image = {-1, 4, 8, 8}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        s0 = Reshape(c1, blocks)
        s1 = Transpose<perm=[0,1,4,2,5,3]>(s0)
        s2 = Reshape(s1, image)
        y = Conv(s2, w2)
    }""",
    "pad_channels": """(float[N,3,6,6] x) => (float[N,3,3,3] y)
        <float[8,3,3,3] w1, float[12,8,3,3] w2, float[3,12,1,1] w3, int64[8] wider = {0, 2, 0, 0, 0, 2, 0, 0}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2)
        s1 = MaxPool<kernel_shape=[1,1], strides=[2,2]>(r1)
        s2 = Pad(s1, wider)
        a = Add(c2, s2)
        r2 = Relu(a)
        y = Conv(r2, w3)
    }""",
    "flatten_spatial": """(float[N,3,6,6] x) => (float[N,4] y)
        <float[8,3,3,3] w1, float[10,72] w2, float[10] b2, float[4,10] w3, int64[2] flat = {-1, 72}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c1)
        f = Reshape(p, flat)
        h = Gemm<transB=1>(f, w2, b2)
        r = Relu(h)
        y = Gemm<transB=1>(r, w3)
    }""",
    "resize": """(float[N,3,4,4] x) => (float[N,3,8,8] y)
        <float[8,3,3,3] w1, float[3,16,1,1] w2, float[8,3,3,3] w3, float[4] scales = {1, 1, 2, 2}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        u = Resize<mode="nearest">(c1, , scales)
        c2 = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w4)
        j = Concat<axis=1>(u, c2)
        y = Conv(j, w2)
    }""".replace("float[8,3,3,3] w3", "float[3,8,3,3] w4"),
    "dynamic_batch": """(float[N,3,6,6] x) => (float[N,4] y)
        <float[8,3,3,3] w1, float[4,288] w2, int64 first = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        size = Shape(r1)
        n = Gather<axis=0>(size, first)
        u = Unsqueeze(n, axis)
        target = Concat<axis=0>(u, rest)
        f = Reshape(r1, target)
        y = Gemm<transB=1>(f, w2)
    }""",
    "shared_bias": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, float[8,8,3,3] w2, float[8] b1, float[3,8,1,1] w3> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b1)
        r2 = Relu(c2)
        y = Conv(r2, w3)
    }""",
    "prelu": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, float[8,1,1] slope, float[3,8,1,1] w2> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = PRelu(c1, slope)
        y = Conv(r1, w2)
    }""",
    "instance_norm": """(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, float[8] b1, float[8] i_scale, float[8] i_shift, float[3,8,1,1] w2> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        i = InstanceNormalization(c1, i_scale, i_shift)
        r = Relu(i)
        y = Conv(r, w2)
    }""",
    "bn_after_relu": f"""(float[N,3,6,6] x) => (float[N,3,6,6] y)
        <float[8,3,3,3] w1, float[8] b1, {_norms(n1=8)}, float[3,8,1,1] w2> {{
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r = Relu(c1)
        e = BatchNormalization{_bn("r", "n1")}
        y = Conv(e, w2)
    }}""",
    "several_outputs": """(float[N,3,6,6] x) => (float[N,3,6,6] y, float[N,8,6,6] c2, float[N,2] z)
        <float[8,3,3,3] w1, float[8,8,3,3] w2, float[3,8,1,1] w3, float[2,8] w4> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2)
        r2 = Relu(c2)
        y = Conv(r2, w3)
        p = GlobalMaxPool(r1)
        f = Flatten(p)
        z = Gemm<transB=1>(f, w4)
    }""",
    "conv1d": """(float[N,2,16] x) => (float[N,3,16] y) <float[8,2,3] w1, float[8] b1, float[3,8,1] w2> {
        c1 = Conv<pads=[1,1]>(x, w1, b1)
        r = Relu(c1)
        y = Conv(r, w2)
    }""",
    "conv3d": """(float[N,2,4,4,4] x) => (float[N,3,4,4,4] y) <float[6,2,3,3,3] w1, float[3,6,1,1,1] w2> {
        c1 = Conv<pads=[1,1,1,1,1,1]>(x, w1)
        r = Relu(c1)
        y = Conv(r, w2)
    }""",
}
"""Graphs of convolutions."""

TEXTS: dict[str, str] = {**DENSE, **CONVOLUTIONAL}
