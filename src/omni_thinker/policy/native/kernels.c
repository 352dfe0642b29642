/* What lies between matrix products, each part in one pass over memory. In decoding, what torch does here in fifty small
   calls a layer takes longer than the products when there are few rows; in training it is bound by memory.

   Sums are in fp32; what goes into a product is rounded to bf16 once. bf16 is the upper half of a float. Rows go to
   the threads of torch's own OpenMP runtime, which is already loaded. Results don't depend on the number of threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t bf16;

static inline float widen(bf16 half) {
    union { uint32_t bits; float value; } both = {.bits = (uint32_t)half << 16};
    return both.value;
}

/* To the nearest, ties to even. A NaN stays one. */
static inline bf16 narrow(float value) {
    union { float value; uint32_t bits; } both = {.value = value};
    return (bf16)((both.bits + 0x7fffu + ((both.bits >> 16) & 1u)) >> 16);
}

/* exp within 2e-7 of its value for x in [-87, 88]; what is smaller counts as -87. A polynomial, so that loops over it
   become vector instructions. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

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

/* out[rows, width] = silu(one) * other, whose rows are `stride` apart (arXiv 2002.05202). */
void gate(const bf16 *one, const bf16 *other, bf16 *out, long rows, long width, long stride) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const bf16 *a = one + row * stride, *b = other + row * stride;
        bf16 *to = out + row * width;
        for (long i = 0; i < width; i++) {
            float value = widen(a[i]);
            to[i] = narrow(value / (1.0f + exponential(-value)) * widen(b[i]));
        }
    }
}

/* Its gradients; all [rows, width]. */
void gate_backward(const bf16 *grad, const bf16 *one, const bf16 *other, bf16 *one_grad, bf16 *other_grad, long rows,
                   long width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++)
        for (long i = row * width; i < (row + 1) * width; i++) {
            float g = widen(grad[i]), value = widen(one[i]), share = 1.0f / (1.0f + exponential(-value));
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

#define MOST 4   /* queries that read the prompt's keys and values together */
#define LANES 16 /* floats of a vector; two at a time keep the sums of MOST queries in registers */
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector load(const float *from) { return *(const vector *)from; }

struct shape {
    long groups, columns, heads, kv_heads, width, tokens, slots, used;
};

/* Queries of one group that share a kv head. */
struct few {
    const float *queries[MOST], *own_keys[MOST], *own_values[MOST];
    bf16 *outs[MOST];
    long count;
};

/* Scores of the prompt for MOST queries; keys [width, tokens]. Beyond `length` they are of what fills it up. */
static inline __attribute__((always_inline)) void score_prompt(struct few f, const float *keys, float *scores,
                                                               long stride, long length, long tokens, float scale,
                                                               const long width) {
    long t = 0;
    for (; t + LANES < length; t += 2 * LANES) {
        vector one[MOST] = {0}, other[MOST] = {0};
        if (t + 2 * LANES > tokens) break;
        for (long w = 0; w < width; w++) {
            vector a = load(keys + w * tokens + t), b = load(keys + w * tokens + t + LANES);
            for (long n = 0; n < MOST; n++) {
                one[n] += f.queries[n][w] * a;
                other[n] += f.queries[n][w] * b;
            }
        }
        for (long n = 0; n < MOST; n++) {
            *(vector *)(scores + n * stride + t) = one[n] * scale;
            *(vector *)(scores + n * stride + t + LANES) = other[n] * scale;
        }
    }
    for (; t < length; t += LANES) {
        vector one[MOST] = {0};
        for (long w = 0; w < width; w++) {
            vector a = load(keys + w * tokens + t);
            for (long n = 0; n < MOST; n++) one[n] += f.queries[n][w] * a;
        }
        for (long n = 0; n < MOST; n++) *(vector *)(scores + n * stride + t) = one[n] * scale;
    }
}

/* One query's scores of its own tokens, behind the prompt's, and the softmax of all, but for the division by what is
   returned. */
static inline __attribute__((always_inline)) float share(const float *query, const float *keys, float *scores,
                                                         long length, long used, float scale, const long width) {
    for (long t = 0; t < used; t++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long w = 0; w < width; w++) sum += query[w] * keys[t * width + w];
        scores[length + t] = sum * scale;
    }
    float most = -INFINITY, total = 0.0f;
    long all = length + used;
#pragma omp simd reduction(max : most)
    for (long t = 0; t < all; t++) most = scores[t] > most ? scores[t] : most;
#pragma omp simd reduction(+ : total)
    for (long t = 0; t < all; t++) {
        scores[t] = exponential(scores[t] - most);
        total += scores[t];
    }
    return total;
}

/* Sums of values by share for MOST queries, LANES x PARTS numbers of the width at a time. */
#define PARTS 4
static inline __attribute__((always_inline)) void sum_values(struct few f, const float *values, const float *scores,
                                                             const float *totals, long stride, long length, long used,
                                                             const long width) {
    for (long at = 0; at < width; at += LANES * PARTS) {
        vector sums[MOST][PARTS] = {0};
        for (long t = 0; t < length; t++)
            for (long n = 0; n < MOST; n++)
                for (long k = 0; k < PARTS; k++)
                    sums[n][k] += scores[n * stride + t] * load(values + t * width + at + k * LANES);
        for (long n = 0; n < f.count; n++) {
            for (long t = 0; t < used; t++)
                for (long k = 0; k < PARTS; k++)
                    sums[n][k] += scores[n * stride + length + t] * load(f.own_values[n] + t * width + at + k * LANES);
            for (long k = 0; k < PARTS; k++)
                for (long i = 0; i < LANES; i++)
                    f.outs[n][at + k * LANES + i] = narrow(sums[n][k][i] / totals[n]);
        }
    }
}

/* The same for heads of any width and prompts of any length. */
static void attend_plainly(struct few f, const float *keys, const float *values, float *scores, long length,
                           struct shape s, float scale) {
    for (long n = 0; n < f.count; n++) {
        for (long t = 0; t < length; t++) {
            float sum = 0.0f;
            for (long w = 0; w < s.width; w++) sum += f.queries[n][w] * keys[w * s.tokens + t];
            scores[t] = sum * scale;
        }
        float total = share(f.queries[n], f.own_keys[n], scores, length, s.used, scale, s.width);
        for (long w = 0; w < s.width; w++) {
            float sum = 0.0f;
            for (long t = 0; t < length; t++) sum += scores[t] * values[t * s.width + w];
            for (long t = 0; t < s.used; t++) sum += scores[length + t] * f.own_values[n][t * s.width + w];
            f.outs[n][w] = narrow(sum / total);
        }
    }
}

static inline __attribute__((always_inline)) void attend_few(struct few f, const float *keys, const float *values,
                                                             float *scores, long length, struct shape s, float scale,
                                                             const long width) {
    long stride = s.tokens + s.slots;
    float totals[MOST];
    score_prompt(f, keys, scores, stride, length, s.tokens, scale, width);
    for (long n = 0; n < f.count; n++)
        totals[n] = share(f.queries[n], f.own_keys[n], scores + n * stride, length, s.used, scale, width);
    sum_values(f, values, scores, totals, stride, length, s.used, width);
}

/* One kv head of one group; scores [MOST, tokens + slots] are scratch. */
static void attend_group(long task, const float *queries, const float *prompt_keys, const float *prompt_values,
                         const long *lengths, const float *own_keys, const float *own_values, bf16 *out, float *scores,
                         float scale, struct shape s) {
    long group = task / s.kv_heads, kv = task % s.kv_heads, per = s.heads / s.kv_heads, all = s.columns * per;
    const float *keys = prompt_keys + task * s.tokens * s.width, *values = prompt_values + task * s.tokens * s.width;
    for (long begin = 0; begin < all; begin += MOST) {
        struct few f = {.count = all - begin < MOST ? all - begin : MOST};
        for (long n = 0; n < MOST; n++) {
            long which = n < f.count ? begin + n : begin; /* places without a query repeat the first */
            long row = group * s.columns + which / per, head = kv * per + which % per;
            f.queries[n] = queries + (row * s.heads + head) * s.width;
            f.own_keys[n] = own_keys + (row * s.kv_heads + kv) * s.slots * s.width;
            f.own_values[n] = own_values + (row * s.kv_heads + kv) * s.slots * s.width;
            f.outs[n] = out + (row * s.heads + head) * s.width;
        }
        if (s.tokens % LANES || (s.width != 64 && s.width != 128))
            attend_plainly(f, keys, values, scores, lengths[group], s, scale);
        else if (s.width == 64)
            attend_few(f, keys, values, scores, lengths[group], s, scale, 64);
        else
            attend_few(f, keys, values, scores, lengths[group], s, scale, 128);
    }
}

/* Every query [groups x columns, heads, width] attends to its group's prompt and to the first `used` slots of its own
   row: out [groups x columns, heads, width]. Prompt keys [groups, kv heads, width, tokens], of which `lengths` are
   real and the rest zeros; values [groups, kv heads, tokens, width]; own ones [groups x columns, kv heads, slots, width].
   Returns 0, or 1 where memory ran out. */
int attend(const float *queries, const float *prompt_keys, const float *prompt_values, const long *lengths,
           const float *own_keys, const float *own_values, bf16 *out, float scale, long groups, long columns,
           long heads, long kv_heads, long width, long tokens, long slots, long used) {
    struct shape s = {groups, columns, heads, kv_heads, width, tokens, slots, used};
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = malloc(sizeof(float) * (size_t)(MOST * (tokens + slots)));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (long task = 0; task < groups * kv_heads; task++)
            if (scratch)
                attend_group(task, queries, prompt_keys, prompt_values, lengths, own_keys, own_values, out, scratch,
                             scale, s);
        free(scratch);
    }
    return failed;
}
