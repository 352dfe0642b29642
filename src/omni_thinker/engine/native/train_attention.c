/* Attention of a training row and its gradient: a prompt to itself, its samples to it and each to its own past, in one
   softmax. All queries that share keys go through two small products: scores of a few queries for all keys, and sums of
   rows by coefficients. Queries and keys are fp32, values and outputs bf16. */

#include "common.h"

#include <string.h>

#define BLOCK 16 /* queries whose scores exist at once */

/* The row: tokens of P prompts, each followed by its samples. `samples[p]` to `samples[p + 1]` are p's. */
struct row {
    const int64_t *prompt_begin, *prompt_length, *samples, *sample_begin, *sample_length;
    long prompts, heads, kv_heads, width;
    float scale;
};

/* Keys and values of some tokens of one kv head, fp32, with their tokens first and with their tokens last. `room` of
   them, a multiple of LANES, the rest zeros. */
struct keys {
    float *key, *value, *key_last, *value_last, *key_grad, *value_grad;
    long length, room;
};

static long rounded(long count) { return (count + LANES - 1) / LANES * LANES; }

static long size_of(long length, long width, int backward) { return rounded(length) * width * (backward ? 6 : 4); }

static struct keys gather(float *from, const float *keys, const bf16 *values, long begin, long length, long kv,
                          const struct row *r, int backward) {
    long width = r->width, room = rounded(length), all = room * width;
    struct keys k = {from, from + all, from + 2 * all, from + 3 * all, 0, 0, length, room};
    if (backward) {
        k.key_grad = from + 4 * all;
        k.value_grad = from + 5 * all;
    }
    memset(from, 0, sizeof(float) * (size_t)(all * (backward ? 6 : 4)));
    for (long t = 0; t < length; t++) {
        const float *key = keys + ((begin + t) * r->kv_heads + kv) * width;
        const bf16 *value = values + ((begin + t) * r->kv_heads + kv) * width;
        for (long w = 0; w < width; w++) {
            k.key[t * width + w] = key[w];
            k.value[t * width + w] = widen(value[w]);
            k.key_last[w * room + t] = key[w];
            k.value_last[w * room + t] = widen(value[w]);
        }
    }
    return k;
}

/* out[n][t] = x[n] . table[:, t] for MOST rows x and all t < count, a multiple of LANES; table [width, room]. */
static void dots(const float *const *x, const float *table, float *out, long stride, long count, long room,
                 long width) {
    long t = 0;
    for (; t + 2 * LANES <= count; t += 2 * LANES) {
        vector one[MOST] = {0}, other[MOST] = {0};
        for (long w = 0; w < width; w++) {
            vector a = load(table + w * room + t), b = load(table + w * room + t + LANES);
            for (long n = 0; n < MOST; n++) {
                one[n] += x[n][w] * a;
                other[n] += x[n][w] * b;
            }
        }
        for (long n = 0; n < MOST; n++) {
            *(vector *)(out + n * stride + t) = one[n];
            *(vector *)(out + n * stride + t + LANES) = other[n];
        }
    }
    for (; t < count; t += LANES) {
        vector one[MOST] = {0};
        for (long w = 0; w < width; w++) {
            vector a = load(table + w * room + t);
            for (long n = 0; n < MOST; n++) one[n] += x[n][w] * a;
        }
        for (long n = 0; n < MOST; n++) *(vector *)(out + n * stride + t) = one[n];
    }
}

/* out[n] += sum over j < count of coefficients[n * by_row + j * by_term] * terms[j], for MOST rows of `width`, a multiple
   of LANES. */
static void combine(float *const *out, const float *coefficients, long by_row, long by_term, const float *terms,
                    long count, long width) {
    long at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) {
        vector sums[MOST][4];
        for (long n = 0; n < MOST; n++)
            for (long k = 0; k < 4; k++) sums[n][k] = load(out[n] + at + k * LANES);
        for (long j = 0; j < count; j++)
            for (long k = 0; k < 4; k++) {
                vector term = load(terms + j * width + at + k * LANES);
                for (long n = 0; n < MOST; n++) sums[n][k] += coefficients[n * by_row + j * by_term] * term;
            }
        for (long n = 0; n < MOST; n++)
            for (long k = 0; k < 4; k++) *(vector *)(out[n] + at + k * LANES) = sums[n][k];
    }
    for (; at < width; at += LANES)
        for (long n = 0; n < MOST; n++) {
            vector sum = load(out[n] + at);
            for (long j = 0; j < count; j++) sum += coefficients[n * by_row + j * by_term] * load(terms + j * width + at);
            *(vector *)(out[n] + at) = sum;
        }
}

/* Scratch of a thread: BLOCK queries, what belongs to them, and their scores for every key. */
struct scratch {
    float *query, *grad, *out, *query_grad; /* [BLOCK, width] */
    float *shares, *share_grads;            /* [BLOCK, keys] */
};

/* Softmax of scaled scores of one query: the first `prompt` keys and, from `room` on, `own` more; the rest become 0. */
static void softmax(float *scores, long prompt, long room, long own, long all, float scale) {
    float most = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : most)
    for (long t = 0; t < prompt; t++) most = scores[t] > most ? scores[t] : most;
#pragma omp simd reduction(max : most)
    for (long t = room; t < room + own; t++) most = scores[t] > most ? scores[t] : most;
#pragma omp simd reduction(+ : total)
    for (long t = 0; t < prompt; t++) {
        scores[t] = exponential((scores[t] - most) * scale);
        total += scores[t];
    }
#pragma omp simd reduction(+ : total)
    for (long t = room; t < room + own; t++) {
        scores[t] = exponential((scores[t] - most) * scale);
        total += scores[t];
    }
    float inverse = 1.0f / total;
    for (long t = 0; t < all; t++) scores[t] *= inverse;
    for (long t = prompt; t < room; t++) scores[t] = 0.0f;
    for (long t = room + own; t < all; t++) scores[t] = 0.0f;
}

/* Products of BLOCK rows with every key, or value: [BLOCK, before + reach], the prompt's and then the first `reach` of
   the part's own. */
static void score_all(const struct keys *prompt, const struct keys *own, int values, long before, long reach,
                      const float *rows, float *out, long width) {
    long all = before + reach;
    for (long i = 0; i < BLOCK; i += MOST) {
        const float *few[MOST];
        for (long n = 0; n < MOST; n++) few[n] = rows + (i + n) * width;
        if (prompt)
            dots(few, values ? prompt->value_last : prompt->key_last, out + i * all, all, before, before, width);
        dots(few, values ? own->value_last : own->key_last, out + i * all + before, all, reach, own->room, width);
    }
}

/* To BLOCK rows: the sum of values, or keys, by what each gives a row; coefficients [BLOCK, all], of which the first
   `before` are the prompt's and the next `seen` are the part's own. */
static void add_by_query(const struct keys *prompt, const struct keys *own, int values, long before, long all,
                         long seen, const float *coefficients, float *rows, long width) {
    for (long i = 0; i < BLOCK; i += MOST) {
        const float *by = coefficients + i * all;
        float *few[MOST];
        for (long n = 0; n < MOST; n++) few[n] = rows + (i + n) * width;
        if (prompt) combine(few, by, all, 1, values ? prompt->value : prompt->key, prompt->length, width);
        combine(few, by + before, all, 1, values ? own->value : own->key, seen, width);
    }
}

/* To the gradient of every value, or key: the sum of BLOCK rows by what each gives it; coefficients [BLOCK, all], of
   which the first `before` are the prompt's. */
static void add_by_key(const struct keys *prompt, const struct keys *own, int values, long before, long all,
                       const float *coefficients, const float *rows, long width) {
    for (long t = 0; t < all; t += MOST) {
        const struct keys *k = t < before ? prompt : own;
        float *grads = values ? k->value_grad : k->key_grad, *few[MOST];
        for (long n = 0; n < MOST; n++) few[n] = grads + ((t < before ? t : t - before) + n) * width;
        combine(few, coefficients + t, 1, all, rows, BLOCK, width);
    }
}

/* A block of up to BLOCK tokens from `first` of a part that begins at `begin`, of one query head. `prompt`: keys that all
   of them see, or none; `own`: keys of the part itself, which each sees up to its own place. Forward where `out_grad` is
   none. */
static void attend_block(const float *queries, bf16 *outs, const bf16 *out_grad, float *query_grad, long head, long begin,
                         long first, const struct keys *prompt, const struct keys *own, struct scratch *s,
                         const struct row *r) {
    long width = r->width, left = own->length - first, count = left < BLOCK ? left : BLOCK;
    long seen = first + count, reach = rounded(seen); /* of the part's own keys */
    long before = prompt ? prompt->room : 0, all = before + reach;
    for (long i = 0; i < BLOCK; i++) { /* places without a query repeat the last; nothing of them is kept */
        long token = begin + first + (i < count ? i : count - 1);
        const float *from = queries + (token * r->heads + head) * width;
        memcpy(s->query + i * width, from, sizeof(float) * (size_t)width);
        memset(s->out + i * width, 0, sizeof(float) * (size_t)width);
    }
    score_all(prompt, own, 0, before, reach, s->query, s->shares, width);
    for (long i = 0; i < BLOCK; i++) {
        long place = first + (i < count ? i : count - 1);
        softmax(s->shares + i * all, prompt ? prompt->length : 0, before, place + 1, all, r->scale);
    }
    if (!out_grad) {
        add_by_query(prompt, own, 1, before, all, seen, s->shares, s->out, width);
        for (long i = 0; i < count; i++) {
            bf16 *to = outs + ((begin + first + i) * r->heads + head) * width;
            for (long w = 0; w < width; w++) to[w] = narrow(s->out[i * width + w]);
        }
        return;
    }
    for (long i = 0; i < BLOCK; i++) {
        long token = begin + first + (i < count ? i : count - 1);
        const bf16 *from = out_grad + (token * r->heads + head) * width;
        float real = i < count ? 1.0f : 0.0f;
        for (long w = 0; w < width; w++) s->grad[i * width + w] = real * widen(from[w]);
        memset(s->query_grad + i * width, 0, sizeof(float) * (size_t)width);
    }
    score_all(prompt, own, 1, before, reach, s->grad, s->share_grads, width);
    add_by_key(prompt, own, 1, before, all, s->shares, s->grad, width); /* before shares become something else */
    for (long i = 0; i < BLOCK; i++) {
        float *share = s->shares + i * all, *grad = s->share_grads + i * all, along = 0.0f;
#pragma omp simd reduction(+ : along)
        for (long t = 0; t < all; t++) along += share[t] * grad[t];
        for (long t = 0; t < all; t++) grad[t] = share[t] * (grad[t] - along) * r->scale;
    }
    add_by_query(prompt, own, 0, before, all, seen, s->share_grads, s->query_grad, width);
    add_by_key(prompt, own, 0, before, all, s->share_grads, s->query, width);
    for (long i = 0; i < count; i++)
        memcpy(query_grad + ((begin + first + i) * r->heads + head) * width, s->query_grad + i * width,
               sizeof(float) * (size_t)width);
}

static void scatter(const struct keys *k, float *key_grads, float *value_grads, long begin, long kv,
                    const struct row *r) {
    for (long t = 0; t < k->length; t++) {
        long to = ((begin + t) * r->kv_heads + kv) * r->width;
        memcpy(key_grads + to, k->key_grad + t * r->width, sizeof(float) * (size_t)r->width);
        memcpy(value_grads + to, k->value_grad + t * r->width, sizeof(float) * (size_t)r->width);
    }
}

/* One kv head of one prompt and its samples. */
static void attend_prompt(long p, long kv, const float *queries, const float *keys, const bf16 *values, bf16 *outs,
                          const bf16 *out_grad, float *query_grad, float *key_grads, float *value_grads, float *room,
                          struct scratch *s, const struct row *r) {
    int backward = out_grad != 0;
    long per = r->heads / r->kv_heads, begin = r->prompt_begin[p], length = r->prompt_length[p];
    struct keys prompt = gather(room, keys, values, begin, length, kv, r, backward);
    for (long head = kv * per; head < (kv + 1) * per; head++)
        for (long first = 0; first < length; first += BLOCK)
            attend_block(queries, outs, out_grad, query_grad, head, begin, first, 0, &prompt, s, r);
    room += size_of(length, r->width, backward);
    for (long g = r->samples[p]; g < r->samples[p + 1]; g++) {
        begin = r->sample_begin[g];
        struct keys own = gather(room, keys, values, begin, r->sample_length[g], kv, r, backward);
        for (long head = kv * per; head < (kv + 1) * per; head++)
            for (long first = 0; first < own.length; first += BLOCK)
                attend_block(queries, outs, out_grad, query_grad, head, begin, first, &prompt, &own, s, r);
        if (backward) scatter(&own, key_grads, value_grads, begin, kv, r);
    }
    if (backward) scatter(&prompt, key_grads, value_grads, r->prompt_begin[p], kv, r);
}

/* Queries [T, heads, width], keys and values [T, kv heads, width] of a row, to outs [T, heads, width]; with `out_grad`
   instead to the gradients of all three. What lies in no part is left as it is. `width` is a multiple of LANES; longest:
   of all prompts, and of all samples. Returns 0, or 1 where memory ran out. */
int attend_row(const float *queries, const float *keys, const bf16 *values, bf16 *outs, const bf16 *out_grad,
               float *query_grad, float *key_grads, float *value_grads, const int64_t *prompt_begin,
               const int64_t *prompt_length, const int64_t *samples, const int64_t *sample_begin, const int64_t *sample_length,
               float scale, long prompts, long heads, long kv_heads, long width, long longest_prompt,
               long longest_sample) {
    struct row r = {prompt_begin, prompt_length, samples, sample_begin, sample_length,
                    prompts,      heads,         kv_heads, width,       scale};
    long all = rounded(longest_prompt) + rounded(longest_sample), few = BLOCK * width;
    long parts = size_of(longest_prompt, width, 1) + size_of(longest_sample, width, 1);
    int failed = 0;
#pragma omp parallel
    {
        float *room = malloc(sizeof(float) * (size_t)(parts + 4 * few + 2 * BLOCK * all));
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
        float *at = room + parts;
        struct scratch s = {at, at + few, at + 2 * few, at + 3 * few, at + 4 * few, at + 4 * few + BLOCK * all};
#pragma omp for schedule(dynamic)
        for (long task = 0; task < prompts * kv_heads; task++)
            if (room)
                attend_prompt(task / kv_heads, task % kv_heads, queries, keys, values, outs, out_grad, query_grad,
                              key_grads, value_grads, room, &s, &r);
        free(room);
    }
    return failed;
}
