/* An update of all weights reads and writes each number once: it is bound by memory alone. */

#include "common.h"

/* sums[size] += more[size]. */
void add_up(float *sums, const bf16 *more, long size) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long i = 0; i < size; i++) sums[i] += widen(more[i]);
}

/* A number of a gradient, which is in `wide` or, where that is NULL, in `half`. */
static inline float number(const float *wide, const bf16 *half, long i) { return wide ? wide[i] : widen(half[i]); }

/* Sums of squares of each `block` numbers of a gradient [size], so that no number of threads changes them. */
void squares(const float *wide, const bf16 *half, float *sums, long size, long block) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long begin = 0; begin < size; begin += block) {
        long end = begin + block < size ? begin + block : size;
        float sum = 0.0f;
        for (long i = begin; i < end; i++) sum += number(wide, half, i) * number(wide, half, i);
        sums[begin / block] = sum;
    }
}

/* A step of AdamW (arXiv 1711.05101) along `scale` x a gradient: masters and moments in place, masters rounded to
   weights; all [size]. `keep`: 1 - rate x decay; `rate` is divided by the first moment's bias, `spread` the root of the
   second's. */
void adamw(float *masters, const float *wide, const bf16 *half, float *means, float *squares, bf16 *weights, long size,
           float scale, float rate, float keep, float beta, float beta_square, float spread, float eps) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long i = 0; i < size; i++) {
        float grad = number(wide, half, i) * scale;
        float mean = means[i] + (1.0f - beta) * (grad - means[i]);
        float square = beta_square * squares[i] + (1.0f - beta_square) * grad * grad;
        float master = masters[i] * keep - rate * mean / (sqrtf(square) / spread + eps);
        means[i] = mean;
        squares[i] = square;
        masters[i] = master;
        weights[i] = narrow(master);
    }
}
