/* Attention in decoding: one token a sample, to its prompt and to its own past. */

#include "common.h"

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
                         const int64_t *lengths, const float *own_keys, const float *own_values, bf16 *out,
                         const uint8_t *wanted, float *scores, float scale, struct shape s) {
    long group = task / s.kv_heads, kv = task % s.kv_heads, per = s.heads / s.kv_heads, all = s.columns * per;
    const float *keys = prompt_keys + task * s.tokens * s.width, *values = prompt_values + task * s.tokens * s.width;
    for (long next = 0; next < all;) {
        struct few f = {.count = 0};
        for (; next < all && f.count < MOST; next++) {
            long row = group * s.columns + next / per, head = kv * per + next % per;
            if (wanted && !wanted[row]) continue;
            f.queries[f.count] = queries + (row * s.heads + head) * s.width;
            f.own_keys[f.count] = own_keys + (row * s.kv_heads + kv) * s.slots * s.width;
            f.own_values[f.count] = own_values + (row * s.kv_heads + kv) * s.slots * s.width;
            f.outs[f.count++] = out + (row * s.heads + head) * s.width;
        }
        if (!f.count) return;
        for (long n = f.count; n < MOST; n++) f.queries[n] = f.queries[0]; /* places without a query repeat the first */
        if (s.tokens % LANES || (s.width != 64 && s.width != 128))
            attend_plainly(f, keys, values, scores, lengths[group], s, scale);
        else if (s.width == 64)
            attend_few(f, keys, values, scores, lengths[group], s, scale, 64);
        else
            attend_few(f, keys, values, scores, lengths[group], s, scale, 128);
    }
}

/* Every query [groups x columns, heads, width] attends to its group's prompt and to the first `used` slots of its own
   row, where `wanted` [groups x columns] isn't 0 (NULL: everywhere): out [groups x columns, heads, width]. Prompt keys [groups, kv heads, width, tokens], of which `lengths` are
   real and the rest zeros; values [groups, kv heads, tokens, width]; own ones [groups x columns, kv heads, slots, width].
   Returns 0, or 1 where memory ran out. */
int attend(const float *queries, const float *prompt_keys, const float *prompt_values, const int64_t *lengths,
           const float *own_keys, const float *own_values, bf16 *out, const uint8_t *wanted, float scale, long groups, long columns,
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
                attend_group(task, queries, prompt_keys, prompt_values, lengths, own_keys, own_values, out, wanted,
                             scratch, scale, s);
        free(scratch);
    }
    return failed;
}
