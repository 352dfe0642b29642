/* What lies between matrix products, each part in one pass over memory. In decoding, what torch does here in fifty small
   calls a layer takes longer than the products when there are few rows; in training it is bound by memory. */

#include "common.h"

/* x[rows, width] += branch (where there is one); out = weight * x / root mean square of the row, whose inverse goes to
   inverses [rows] (where there are any; arXiv 1910.07467). */
void add_norm(float *x, const bf16 *branch, const bf16 *weight, bf16 *out, float *inverses, long rows, long width,
              float eps) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        float *own = x + row * width;
        bf16 *to = out + row * width;
        float sum = 0.0f;
        if (branch) {
            const bf16 *more = branch + row * width;
            for (long i = 0; i < width; i++) own[i] += widen(more[i]);
        }
        for (long i = 0; i < width; i++) sum += own[i] * own[i];
        float inverse = 1.0f / sqrtf(sum / (float)width + eps);
        if (inverses) inverses[row] = inverse;
        for (long i = 0; i < width; i++) to[i] = narrow(own[i] * inverse * widen(weight[i]));
    }
}

/* Gradients of x [rows, width], and of the weight for every `block` rows: [blocks, width], to be added up. */
void norm_backward(const bf16 *grad, const float *x, const bf16 *weight, const float *inverses, float *x_grad,
                   float *weight_grads, long rows, long width, long block) {
#pragma omp parallel for schedule(static)
    for (long begin = 0; begin < rows; begin += block) {
        float *sums = weight_grads + begin / block * width;
        for (long i = 0; i < width; i++) sums[i] = 0.0f;
        for (long row = begin; row < rows && row < begin + block; row++) {
            const bf16 *g = grad + row * width;
            const float *own = x + row * width;
            float *to = x_grad + row * width, inverse = inverses[row], along = 0.0f;
            for (long i = 0; i < width; i++) {
                float product = widen(g[i]) * own[i];
                sums[i] += product * inverse;
                along += product * widen(weight[i]);
            }
            along *= inverse * inverse * inverse / (float)width;
            for (long i = 0; i < width; i++) to[i] = widen(g[i]) * widen(weight[i]) * inverse - own[i] * along;
        }
    }
}

/* Nothing where exp would be more than a float holds: times any finite number it still is nothing. */
static inline float sigmoid(float x) { return x < -87.0f ? 0.0f : 1.0f / (1.0f + exponential(-x)); }

/* out[rows, width] = silu(one) * other, whose rows are `stride` apart (arXiv 2002.05202). */
void gate(const bf16 *one, const bf16 *other, bf16 *out, long rows, long width, long stride) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const bf16 *a = one + row * stride, *b = other + row * stride;
        bf16 *to = out + row * width;
        for (long i = 0; i < width; i++) {
            float value = widen(a[i]);
            to[i] = narrow(value * sigmoid(value) * widen(b[i]));
        }
    }
}

/* Its gradients; all [rows, width]. */
void gate_backward(const bf16 *grad, const bf16 *one, const bf16 *other, bf16 *one_grad, bf16 *other_grad, long rows,
                   long width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++)
        for (long i = row * width; i < (row + 1) * width; i++) {
            float g = widen(grad[i]), value = widen(one[i]), share = sigmoid(value);
            one_grad[i] = narrow(g * widen(other[i]) * share * (1.0f + value * (1.0f - share)));
            other_grad[i] = narrow(g * value * share);
        }
}

/* One head turned to its position; cosines and sines [width], both halves alike. */
static inline void turn(const bf16 *from, const float *cosine, const float *sine, float *to, long width) {
    long half = width / 2;
    for (long i = 0; i < half; i++) {
        float a = widen(from[i]), b = widen(from[half + i]);
        to[i] = a * cosine[i] - b * sine[i];
        to[half + i] = b * cosine[half + i] + a * sine[half + i];
    }
}

/* Heads [rows, heads, width] turned to their rows' positions (arXiv 2104.09864). */
void turn_heads(const bf16 *x, const float *cosines, const float *sines, float *out, long rows, long heads,
                long width) {
#pragma omp parallel for schedule(static) if (rows * heads * width > 16384)
    for (long row = 0; row < rows; row++)
        for (long head = row * heads; head < (row + 1) * heads; head++)
            turn(x + head * width, cosines + row * width, sines + row * width, out + head * width, width);
}

/* Its gradient: turned back. Rows of `grad` are `stride` apart. */
void turn_back(const float *grad, const float *cosines, const float *sines, bf16 *out, long rows, long heads,
               long width, long stride) {
    long half = width / 2;
#pragma omp parallel for schedule(static) if (rows * heads * width > 16384)
    for (long row = 0; row < rows; row++) {
        const float *cosine = cosines + row * width, *sine = sines + row * width;
        for (long head = 0; head < heads; head++) {
            const float *from = grad + row * stride + head * width;
            bf16 *to = out + (row * heads + head) * width;
            for (long i = 0; i < half; i++) {
                float a = from[i], b = from[half + i];
                to[i] = narrow(a * cosine[i] + b * sine[half + i]);
                to[half + i] = narrow(b * cosine[half + i] - a * sine[i]);
            }
        }
    }
}

/* From a product [rows, heads + 2 kv heads, width]: turned queries [rows, heads, width], and turned keys and values into
   slot `used` of [rows, kv heads, slots, width]. */
void turn_and_store(const bf16 *product, const float *cosines, const float *sines, float *queries, float *keys,
                    float *values, long rows, long heads, long kv_heads, long slots, long used, long width) {
#pragma omp parallel for schedule(static) if (rows * heads * width > 16384)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = product + row * (heads + 2 * kv_heads) * width;
        const float *cosine = cosines + row * width, *sine = sines + row * width;
        for (long head = 0; head < heads; head++)
            turn(from + head * width, cosine, sine, queries + (row * heads + head) * width, width);
        for (long head = 0; head < kv_heads; head++) {
            long slot = ((row * kv_heads + head) * slots + used) * width;
            turn(from + (heads + head) * width, cosine, sine, keys + slot, width);
            const bf16 *value = from + (heads + kv_heads + head) * width;
            for (long i = 0; i < width; i++) values[slot + i] = widen(value[i]);
        }
    }
}
