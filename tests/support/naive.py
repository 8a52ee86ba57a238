"""Loop-based references, written from the formulas with `math` and NumPy alone: never from the code under test.

`f(arrays..., constants..., options)` returns y; `f_gradient(dy, the same)` returns the gradients of the arrays, in order.
Sums are `math.fsum` (one rounding), so that a difference points at the other side. Slow on purpose: shapes below 10.
"""

import math

import numpy as np


def _spatial(size, kernel, stride, padding, dilation=1):
    return (size + sum(padding) - ((kernel - 1) * dilation + 1)) // stride + 1


# Affine maps


def dense(x, w, b=None):
    y = np.empty((x.shape[0], w.shape[0]))
    for n, o in np.ndindex(y.shape):
        y[n, o] = math.fsum([x[n, i] * w[o, i] for i in range(x.shape[1])] + ([] if b is None else [b[o]]))
    return y


def dense_gradient(dy, x, w, b=None):
    dx, dw, db = np.empty(x.shape), np.empty(w.shape), np.empty(w.shape[0])
    for n, i in np.ndindex(x.shape):
        dx[n, i] = math.fsum(dy[n, o] * w[o, i] for o in range(w.shape[0]))
    for o, i in np.ndindex(w.shape):
        dw[o, i] = math.fsum(dy[n, o] * x[n, i] for n in range(x.shape[0]))
    for o in range(w.shape[0]):
        db[o] = math.fsum(dy[:, o])
    return dx, dw, db


def _conv2d_products(x, w, stride, padding, dilation, groups):
    """Every product of the convolution as (n, o, p, q, c of x, row, column, c of w, i, j); pixels off the image left out."""
    ho = _spatial(x.shape[2], w.shape[2], stride[0], padding[0], dilation[0])
    wo = _spatial(x.shape[3], w.shape[3], stride[1], padding[1], dilation[1])
    outs, ins = w.shape[0] // groups, w.shape[1]
    for n, o, p, q in np.ndindex(x.shape[0], w.shape[0], ho, wo):
        for i in range(w.shape[2]):
            row = p * stride[0] + i * dilation[0] - padding[0][0]
            if not 0 <= row < x.shape[2]:
                continue
            for j in range(w.shape[3]):
                column = q * stride[1] + j * dilation[1] - padding[1][0]
                if 0 <= column < x.shape[3]:
                    for c in range(ins):
                        yield n, o, p, q, (o // outs) * ins + c, row, column, c, i, j


def _gather(shape, pairs):
    """An array from (index, summand) pairs."""
    terms = {}
    for index, value in pairs:
        terms.setdefault(index, []).append(value)
    y = np.zeros(shape)
    for index, values in terms.items():
        y[index] = math.fsum(values)
    return y


def conv2d(x, w, b=None, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    ho = _spatial(x.shape[2], w.shape[2], stride[0], padding[0], dilation[0])
    wo = _spatial(x.shape[3], w.shape[3], stride[1], padding[1], dilation[1])
    shape = (x.shape[0], w.shape[0], ho, wo)
    pairs = [
        ((n, o, p, q), x[n, cx, r, s] * w[o, c, i, j])
        for n, o, p, q, cx, r, s, c, i, j in _conv2d_products(x, w, stride, padding, dilation, groups)
    ]
    if b is not None:
        pairs += [((n, o, p, q), b[o]) for n, o, p, q in np.ndindex(shape)]
    return _gather(shape, pairs)


def conv2d_gradient(dy, x, w, b=None, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    for_x, for_w = [], []
    for n, o, p, q, cx, r, s, c, i, j in _conv2d_products(x, w, stride, padding, dilation, groups):
        for_x.append(((n, cx, r, s), dy[n, o, p, q] * w[o, c, i, j]))
        for_w.append(((o, c, i, j), dy[n, o, p, q] * x[n, cx, r, s]))
    db = np.array([math.fsum(dy[:, o].ravel()) for o in range(w.shape[0])])
    return _gather(x.shape, for_x), _gather(w.shape, for_w), db


# Batch normalisation, one channel's values at a time


def _channels(x):
    """(index of the channel's values, the values) for each channel."""
    for c in range(x.shape[1]):
        indices = [index for index in np.ndindex(x.shape) if index[1] == c]
        yield c, indices, [float(x[index]) for index in indices]


def _moments(values):
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / len(values)


def batch_norm(x, gain, bias, *, eps):
    y = np.empty(x.shape)
    for c, indices, values in _channels(x):
        mean, variance = _moments(values)
        for index, v in zip(indices, values, strict=True):
            y[index] = gain[c] * (v - mean) / math.sqrt(variance + eps) + bias[c]
    return y


def batch_norm_gradient(dy, x, gain, bias, *, eps):
    """The chain rule of Ioffe and Szegedy (2015), section 3: through the variance, the mean, and directly."""
    dx, dgain, dbias = np.empty(x.shape), np.empty(gain.shape), np.empty(bias.shape)
    for c, indices, values in _channels(x):
        mean, variance = _moments(values)
        m, root = len(values), math.sqrt(variance + eps)
        out = [float(dy[index]) for index in indices]
        dnormal = [d * gain[c] for d in out]
        dvariance = math.fsum(d * (v - mean) * -0.5 * root**-3 for d, v in zip(dnormal, values, strict=True))
        dmean = math.fsum(-d / root for d in dnormal) + dvariance * math.fsum(-2.0 * (v - mean) for v in values) / m
        for index, d, v in zip(indices, dnormal, values, strict=True):
            dx[index] = math.fsum((d / root, dvariance * 2.0 * (v - mean) / m, dmean / m))
        dgain[c] = math.fsum(d * (v - mean) / root for d, v in zip(out, values, strict=True))
        dbias[c] = math.fsum(out)
    return dx, dgain, dbias


def batch_norm_eval(x, gain, bias, mean, variance, *, eps):
    y = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        c = index[1]
        y[index] = gain[c] * (x[index] - mean[c]) / math.sqrt(variance[c] + eps) + bias[c]
    return y


def batch_norm_eval_gradient(dy, x, gain, bias, mean, variance, *, eps):
    dx = np.empty(x.shape)
    dgain, dbias = [], []
    for c, indices, values in _channels(x):
        root = math.sqrt(variance[c] + eps)
        for index in indices:
            dx[index] = dy[index] * gain[c] / root
        dgain.append(math.fsum(dy[index] * (v - mean[c]) / root for index, v in zip(indices, values, strict=True)))
        dbias.append(math.fsum(dy[index] for index in indices))
    return dx, np.array(dgain), np.array(dbias)


# Activations: one number at a time


def _each(f, *arrays):
    y = np.empty(arrays[0].shape)
    for index in np.ndindex(y.shape):
        y[index] = f(*(float(a[index]) for a in arrays))
    return y


def leaky_relu_branch(x):
    return _each(lambda v: (v > 0) - (v < 0), x).astype(np.int8)


def leaky_relu(x, *, slope, at_zero, branch=None):
    return leaky_relu_gradient(x, x, slope=slope, at_zero=at_zero, branch=branch)[0]


def leaky_relu_gradient(dy, x, *, slope, at_zero, branch=None):
    """On its branch the function is linear: value and gradient multiply by the same factor."""
    factor = {-1: slope, 0: (1 - at_zero) * slope + at_zero, 1: 1.0}
    return (_each(lambda d, s: d * factor[s], dy, leaky_relu_branch(x) if branch is None else branch),)


def tanh(x):
    return _each(math.tanh, x)


def tanh_gradient(dy, x):
    return (_each(lambda d, v: d / math.cosh(v) ** 2, dy, x),)


def sigmoid(x):
    return _each(lambda v: 0.5 * (1.0 + math.tanh(0.5 * v)), x)


def sigmoid_gradient(dy, x):
    return (_each(lambda d, v: d * 0.25 / math.cosh(0.5 * v) ** 2, dy, x),)


def gelu(x):
    return _each(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2.0)), x)


def gelu_gradient(dy, x):
    def slope(v):
        return 0.5 * math.erfc(-v / math.sqrt(2.0)) + v * math.exp(-v * v / 2.0) / math.sqrt(2.0 * math.pi)

    return (_each(lambda d, v: d * slope(v), dy, x),)


def gelu_tanh(x):
    """x·σ(2z), z = √(2/π)(x + 0.044715 x³): the logistic form of (1 + tanh z)/2."""
    return _each(lambda v: v / (1.0 + math.exp(-2.0 * math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3))), x)


def gelu_tanh_gradient(dy, x):
    def slope(v):
        z, dz = math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3), math.sqrt(2.0 / math.pi) * (1.0 + 0.134145 * v * v)
        logistic = 1.0 / (1.0 + math.exp(-2.0 * z))
        return logistic + v * dz * 0.5 / math.cosh(z) ** 2

    return (_each(lambda d, v: d * slope(v), dy, x),)


# Pooling and shape


def _pool_windows(shape, kernel, stride, padding):
    """For each output: its index and the list of (row, column, number inside the window) that lie on the image."""
    ho = _spatial(shape[2], kernel[0], stride[0], padding[0])
    wo = _spatial(shape[3], kernel[1], stride[1], padding[1])
    for n, c, p, q in np.ndindex(shape[0], shape[1], ho, wo):
        top, left = p * stride[0] - padding[0][0], q * stride[1] - padding[1][0]
        yield (
            (n, c, p, q),
            [
                (top + i, left + j, i * kernel[1] + j)
                for i in range(kernel[0])
                for j in range(kernel[1])
                if 0 <= top + i < shape[2] and 0 <= left + j < shape[3]
            ],
        )


def _pool_shape(shape, kernel, stride, padding):
    return (*shape[:2], *(_spatial(shape[2 + k], kernel[k], stride[k], padding[k]) for k in (0, 1)))


def max_pool_branch(x, *, kernel, stride, padding, ties):
    chosen = np.empty(_pool_shape(x.shape, kernel, stride, padding), dtype=np.intp)
    for (n, c, p, q), pixels in _pool_windows(x.shape, kernel, stride, padding):
        largest = max(x[n, c, r, s] for r, s, _ in pixels)
        winners = [number for r, s, number in pixels if x[n, c, r, s] == largest]
        chosen[n, c, p, q] = winners[0] if ties == "first" else winners[-1]
    return chosen


def max_pool(x, *, kernel, stride, padding, ties, branch=None):
    if branch is None:
        branch = max_pool_branch(x, kernel=kernel, stride=stride, padding=padding, ties=ties)
    y = np.empty(branch.shape)
    for (n, c, p, q), pixels in _pool_windows(x.shape, kernel, stride, padding):
        (y[n, c, p, q],) = (x[n, c, r, s] for r, s, number in pixels if number == branch[n, c, p, q])
    return y


def max_pool_gradient(dy, x, *, kernel, stride, padding, ties, branch=None):
    if branch is None:
        branch = max_pool_branch(x, kernel=kernel, stride=stride, padding=padding, ties=ties)
    pairs = [
        ((n, c, r, s), dy[n, c, p, q])
        for (n, c, p, q), pixels in _pool_windows(x.shape, kernel, stride, padding)
        for r, s, number in pixels
        if number == branch[n, c, p, q]
    ]
    return (_gather(x.shape, pairs),)


def average_pool(x, *, kernel, stride, padding, count_padding):
    y = np.empty(_pool_shape(x.shape, kernel, stride, padding))
    for (n, c, p, q), pixels in _pool_windows(x.shape, kernel, stride, padding):
        count = kernel[0] * kernel[1] if count_padding else len(pixels)
        y[n, c, p, q] = math.fsum(x[n, c, r, s] for r, s, _ in pixels) / count
    return y


def average_pool_gradient(dy, x, *, kernel, stride, padding, count_padding):
    pairs = [
        ((n, c, r, s), dy[n, c, p, q] / (kernel[0] * kernel[1] if count_padding else len(pixels)))
        for (n, c, p, q), pixels in _pool_windows(x.shape, kernel, stride, padding)
        for r, s, _ in pixels
    ]
    return (_gather(x.shape, pairs),)


def global_average_pool(x):
    y = np.empty(x.shape[:2])
    for n, c in np.ndindex(y.shape):
        y[n, c] = math.fsum(x[n, c].ravel()) / (x.shape[2] * x.shape[3])
    return y


def global_average_pool_gradient(dy, x):
    dx = np.empty(x.shape)
    for n, c, r, s in np.ndindex(x.shape):
        dx[n, c, r, s] = dy[n, c] / (x.shape[2] * x.shape[3])
    return (dx,)


def flatten(x):
    _, channels, height, width = x.shape
    y = np.empty((x.shape[0], channels * height * width))
    for n, c, r, s in np.ndindex(x.shape):
        y[n, (c * height + r) * width + s] = x[n, c, r, s]
    return y


def flatten_gradient(dy, x):
    dx = np.empty(x.shape)
    for n, c, r, s in np.ndindex(x.shape):
        dx[n, c, r, s] = dy[n, (c * x.shape[2] + r) * x.shape[3] + s]
    return (dx,)


# Residual sections and gates


def subsample_pad(x, *, stride, before, after):
    height, width = -(-x.shape[2] // stride[0]), -(-x.shape[3] // stride[1])
    y = np.zeros((x.shape[0], before + x.shape[1] + after, height, width))
    for n, c, p, q in np.ndindex(x.shape[0], x.shape[1], height, width):
        y[n, before + c, p, q] = x[n, c, p * stride[0], q * stride[1]]
    return y


def subsample_pad_gradient(dy, x, *, stride, before, after):
    dx = np.zeros(x.shape)
    for n, c, r, s in np.ndindex(x.shape):
        if r % stride[0] == 0 and s % stride[1] == 0:
            dx[n, c, r, s] = dy[n, before + c, r // stride[0], s // stride[1]]
    return (dx,)


def add(shortcut, path, *, channels):
    y = np.empty(shortcut.shape)
    where = list(range(shortcut.shape[1])) if channels is None else list(channels)
    for index in np.ndindex(y.shape):
        n, c, *pixel = index
        y[index] = shortcut[index] + (path[(n, where.index(c), *pixel)] if c in where else 0.0)
    return y


def add_gradient(dy, shortcut, path, *, channels):
    dpath = np.empty(path.shape)
    for index in np.ndindex(path.shape):
        n, c, *pixel = index
        dpath[index] = dy[(n, c if channels is None else channels[c], *pixel)]
    return np.array(dy), dpath


def gate(x, g):
    y = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        y[index] = x[index] * (g[()] if g.ndim == 0 else g[index[1]])
    return y


def gate_gradient(dy, x, g):
    dg = np.empty(g.shape)
    for which in np.ndindex(g.shape):
        dg[which] = math.fsum(x[i] * dy[i] for i in np.ndindex(x.shape) if which in ((), (i[1],)))
    return gate(dy, g), dg


# Losses and weight decay


def cross_entropy(logits, labels, *, reduction):
    """log Σ_k exp(z_k − z_label): no softmax, no maximum subtracted."""
    losses = [math.log(math.fsum(math.exp(z - row[k]) for z in row)) for row, k in zip(logits, labels, strict=True)]
    return np.array(math.fsum(losses) / (len(losses) if reduction == "mean" else 1))


def cross_entropy_gradient(dy, logits, labels, *, reduction):
    d = np.empty(logits.shape)
    for n, k in np.ndindex(d.shape):
        probability = 1.0 / math.fsum(math.exp(z - logits[n, k]) for z in logits[n])
        d[n, k] = float(dy) * (probability - (k == labels[n])) / (len(labels) if reduction == "mean" else 1)
    return (d,)


def _squares_divisor(shape, reduction):
    return {"mean": math.prod(shape), "batch_mean": shape[0], "sum": 1}[reduction]


def mean_squared_error(prediction, target, *, reduction):
    squares = [(prediction[i] - target[i]) ** 2 for i in np.ndindex(prediction.shape)]
    return np.array(math.fsum(squares) / _squares_divisor(prediction.shape, reduction))


def mean_squared_error_gradient(dy, prediction, target, *, reduction):
    divisor = _squares_divisor(prediction.shape, reduction)
    return (_each(lambda p, t: 2.0 * (p - t) * float(dy) / divisor, prediction, target),)


def weight_decay(w, *, strength):
    return np.array(strength * math.fsum(float(v) ** 2 for v in w.ravel()) / 2.0)


def weight_decay_gradient(dy, w, *, strength):
    return (_each(lambda v: strength * v * float(dy), w),)


# HSIC (SPEC K1, K2), on lists of rows: plain sums and products, so that Fractions stay exact


def linear_kernel(x):
    return [[sum(a * b for a, b in zip(r, s, strict=True)) for s in x] for r in x]


def median_distance(x):
    distances = sorted(math.dist(x[i], x[j]) for i in range(len(x)) for j in range(i))
    middle = len(distances) // 2
    return distances[middle] if len(distances) % 2 else (distances[middle - 1] + distances[middle]) / 2


def rbf_kernel(x, sigma):
    return [[math.exp(-(math.dist(r, s) ** 2) / (2 * sigma**2)) for s in x] for r in x]


def hsic_biased(k, l):  # noqa: E741
    """tr(KHLH)/(n−1)² with the entries of KH and LH."""
    n = len(k)
    kh, lh = ([[row[j] - sum(row) / n for j in range(n)] for row in matrix] for matrix in (k, l))
    return sum(kh[i][j] * lh[j][i] for i in range(n) for j in range(n)) / (n - 1) ** 2


def hsic_unbiased(k, l):  # noqa: E741
    """The three terms of Song et al. 2012."""
    n = len(k)
    k, l = ([[0 if i == j else matrix[i][j] for j in range(n)] for i in range(n)] for matrix in (k, l))  # noqa: E741
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, l)) / ((n - 1) * (n - 2))
    chain = 2 * sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n)) / (n - 2)
    return (trace + sums - chain) / (n * (n - 3))


def hsic_u_statistic(k, l):  # noqa: E741
    """The mean of K_ij (L_ij + L_qr − 2 L_iq) over all i, j, q, r that differ."""
    indices = [(i, j, q, r) for i, j, q, r in np.ndindex((len(k),) * 4) if len({i, j, q, r}) == 4]
    return sum(k[i][j] * (l[i][j] + l[q][r] - 2 * l[i][q]) for i, j, q, r in indices) / len(indices)
