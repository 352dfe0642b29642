/* What is asked of logits [rows, width], read as few times as there are questions: torch makes fp32 copies of them, and
   a pass over those for each step. Logits are scaled (1 / temperature) before anything else. */

#include "common.h"

#define BLOCK 256 /* tokens whose probabilities are summed first */

/* What is next to nothing is nothing, so that a sum that doesn't rise tells a token without weight. */
static inline float share(float below) { return below < -87.0f ? 0.0f : exponential(below); }

static float largest(const bf16 *row, long width) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (long v = 0; v < width; v++) {
        float own = widen(row[v]);
        most = own > most ? own : most;
    }
    return most;
}

static float sum_of_shares(const bf16 *row, long width, float most, float scale) {
    float sum = 0.0f;
    for (long v = 0; v < width; v++) sum += share((widen(row[v]) - most) * scale);
    return sum;
}

/* `draws` tokens, each from one of the `rows` by a uniform number in [0, 1), and their log-probs: first the block in
   which the running sum passes the target, then the token. Both sums end above the target. `blocks`: room for width /
   BLOCK sums a draw, rounded up. Of logits that aren't finite no sum rises above anything: the last token, and its
   log-prob tells. */
void draw(const bf16 *logits, const int64_t *rows, const double *uniforms, float *blocks, int64_t *tokens,
          float *logprobs, float scale, long draws, long width) {
    long count = (width + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (long r = 0; r < draws; r++) {
        const bf16 *row = logits + rows[r] * width;
        float *sums = blocks + r * count, most = largest(row, width);
        double total = 0.0, before = 0.0, inner = 0.0, running = 0.0;
        for (long b = 0; b < count; b++) {
            long begin = b * BLOCK, size = width - begin < BLOCK ? width - begin : BLOCK;
            total += sums[b] = sum_of_shares(row + begin, size, most, scale);
        }
        double target = fmin(uniforms[r], 1.0 - 0x1p-53) * total;
        long block = 0;
        while (block < count - 1 && !(before + sums[block] > target)) before += sums[block++];
        long begin = block * BLOCK, end = begin + BLOCK < width ? begin + BLOCK : width, token = begin;
        for (long v = begin; v < end; v++) inner += share((widen(row[v]) - most) * scale);
        target = fmin(fmax(target - before, 0.0), inner * (1.0 - 0x1p-53));
        for (token = begin; token < end - 1; token++) {
            running += share((widen(row[token]) - most) * scale);
            if (running > target) break;
        }
        tokens[r] = token;
        logprobs[r] = (float)((double)((widen(row[token]) - most) * scale) - log(total));
    }
}

/* Of each row: the log-prob of its target, the entropy, and what is to be taken off a scaled logit for its log-prob. */
void logprob_entropy(const bf16 *logits, const int64_t *targets, float *chosen, float *entropies, float *normalisers,
                     float scale, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const bf16 *row = logits + r * width;
        float most = largest(row, width), total = 0.0f, along = 0.0f;
        for (long v = 0; v < width; v++) {
            float below = (widen(row[v]) - most) * scale, own = share(below);
            total += own;
            along += own * (below < -87.0f ? 0.0f : below);
        }
        float log_total = logf(total), at = (widen(row[targets[r]]) - most) * scale;
        chosen[r] = (at < -1e30f ? -1e30f : at) - log_total;
        entropies[r] = log_total - along / total;
        normalisers[r] = most * scale + log_total;
    }
}

/* Gradients of the chosen log-probs, scale x grad x (one at the target - probabilities); `out` may be `logits`. */
void logit_gradient(const bf16 *logits, const int64_t *targets, const float *normalisers, const float *grads, bf16 *out,
                    float scale, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const bf16 *row = logits + r * width;
        bf16 *to = out + r * width;
        float factor = grads[r] * scale, less = normalisers[r];
        float chosen = share(widen(row[targets[r]]) * scale - less);
        for (long v = 0; v < width; v++) to[v] = narrow(-factor * share(widen(row[v]) * scale - less));
        to[targets[r]] = narrow(factor * (1.0f - chosen));
    }
}
