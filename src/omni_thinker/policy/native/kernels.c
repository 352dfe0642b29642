/* Decoding between matrix products, each part in one pass over memory. What torch does here in fifty small calls a
   layer takes longer than the products when there are few rows.

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

/* x[rows, width] += branch (where there is one); out = weight * x / root mean square of the row. */
void add_norm(float *x, const bf16 *branch, const bf16 *weight, bf16 *out, long rows, long width, float eps) {
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
        for (long i = 0; i < width; i++) to[i] = narrow(own[i] * inverse * widen(weight[i]));
    }
}

/* out[rows, width] = silu(first half of a row) * second half. */
void gate(const bf16 *both, bf16 *out, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const bf16 *one = both + row * 2 * width, *other = one + width;
        bf16 *to = out + row * width;
        for (long i = 0; i < width; i++) {
            float value = widen(one[i]);
            to[i] = narrow(value / (1.0f + exponential(-value)) * widen(other[i]));
        }
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

#define MOST 4 /* queries that read the prompt's keys together */

struct shape {
    long groups, columns, heads, kv_heads, width, tokens, slots, used;
};

/* `count` <= MOST queries of one group that share a kv head. Scores go to scratch [MOST, tokens + slots]. */
static inline __attribute__((always_inline)) void attend_few(
    const float *const *queries, const float *prompt_keys, const float *prompt_values, const float *const *own_keys,
    const float *const *own_values, bf16 *const *outs, float *scratch, long count, long length, float scale,
    struct shape s, const long width) {
    long stride = s.tokens + s.slots;
    for (long n = 0; n < count; n++)
        for (long t = 0; t < length; t++) scratch[n * stride + t] = 0.0f;
    for (long w = 0; w < width; w++) { /* keys of the prompt lie by number first: [width, tokens] */
        const float *row = prompt_keys + w * s.tokens;
        for (long n = 0; n < count; n++) {
            float factor = queries[n][w] * scale, *score = scratch + n * stride;
            for (long t = 0; t < length; t++) score[t] += factor * row[t];
        }
    }
    for (long n = 0; n < count; n++) {
        float *score = scratch + n * stride, sums[width], total = 0.0f, most = -INFINITY;
        for (long t = 0; t < s.used; t++) {
            const float *key = own_keys[n] + t * width;
            float sum = 0.0f;
            for (long w = 0; w < width; w++) sum += queries[n][w] * key[w];
            score[length + t] = sum * scale;
        }
        long all = length + s.used;
        for (long t = 0; t < all; t++) most = score[t] > most ? score[t] : most;
        for (long t = 0; t < all; t++) {
            score[t] = exponential(score[t] - most);
            total += score[t];
        }
        for (long w = 0; w < width; w++) sums[w] = 0.0f;
        for (long t = 0; t < length; t++)
            for (long w = 0; w < width; w++) sums[w] += score[t] * prompt_values[t * width + w];
        for (long t = 0; t < s.used; t++)
            for (long w = 0; w < width; w++) sums[w] += score[length + t] * own_values[n][t * width + w];
        for (long w = 0; w < width; w++) outs[n][w] = narrow(sums[w] / total);
    }
}

static inline __attribute__((always_inline)) void attend_group(
    long task, const float *queries, const float *prompt_keys, const float *prompt_values, const long *lengths,
    const float *own_keys, const float *own_values, bf16 *out, float *scratch, float scale, struct shape s,
    const long width) {
    long group = task / s.kv_heads, kv = task % s.kv_heads, per = s.heads / s.kv_heads, size = s.tokens * width;
    const float *few[MOST], *keys[MOST], *values[MOST];
    bf16 *outs[MOST];
    for (long begin = 0; begin < s.columns * per; begin += MOST) {
        long count = s.columns * per - begin < MOST ? s.columns * per - begin : MOST;
        for (long n = 0; n < count; n++) {
            long row = group * s.columns + (begin + n) / per, head = kv * per + (begin + n) % per;
            few[n] = queries + (row * s.heads + head) * width;
            keys[n] = own_keys + (row * s.kv_heads + kv) * s.slots * width;
            values[n] = own_values + (row * s.kv_heads + kv) * s.slots * width;
            outs[n] = out + (row * s.heads + head) * width;
        }
        const float *key = prompt_keys + task * size, *value = prompt_values + task * size;
        if (count == MOST)
            attend_few(few, key, value, keys, values, outs, scratch, MOST, lengths[group], scale, s, width);
        else
            attend_few(few, key, value, keys, values, outs, scratch, count, lengths[group], scale, s, width);
    }
}

/* Every query [groups x columns, heads, width] attends to its group's prompt and to the first `used` slots of its own
   row: out [groups x columns, heads, width]. Prompt keys [groups, kv heads, width, tokens], of which `lengths` are
   real; values [groups, kv heads, tokens, width]; own ones [groups x columns, kv heads, slots, width].
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
        for (long task = 0; task < groups * kv_heads; task++) {
            if (!scratch) continue;
            if (width == 64)
                attend_group(task, queries, prompt_keys, prompt_values, lengths, own_keys, own_values, out, scratch,
                             scale, s, 64);
            else if (width == 128)
                attend_group(task, queries, prompt_keys, prompt_values, lengths, own_keys, own_values, out, scratch,
                             scale, s, 128);
            else
                attend_group(task, queries, prompt_keys, prompt_values, lengths, own_keys, own_values, out, scratch,
                             scale, s, width);
        }
        free(scratch);
    }
    return failed;
}
