/* What the kernels share. Sums are in fp32; what goes into a product is rounded to bf16 once. bf16 is the upper half of a
   float. Rows and heads go to the threads of torch's own OpenMP runtime, which is already loaded; results don't depend on
   the number of threads. */

#ifndef OMNI_THINKER_COMMON
#define OMNI_THINKER_COMMON

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
    return value != value ? 0x7fc0 : (bf16)((both.bits + 0x7fffu + ((both.bits >> 16) & 1u)) >> 16);
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

#define MOST 4   /* queries that read keys and values together */
#define LANES 16 /* floats of a vector; two at a time keep the sums of MOST queries in registers */
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector load(const float *from) { return *(const vector *)from; }

#endif
